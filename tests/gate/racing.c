/* A process of a pod that tries to get past the gate by a race, a detail of the kernel, or another process; the first argument says how.

Each way prints a line "BYTES ERRNO" with what it has locked by its own reckoning (VmLck of /proc/self/status where it races), and stays. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_xdp.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
#define MIB (1L << 20)
#define GIB (1L << 30)
#define POPULATE_READ 22 /* MADV_POPULATE_READ */
#define DONTUNMAP 4	 /* MREMAP_DONTUNMAP */

static volatile int stage;

static void *room(long size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static long field(const char *file, const char *format)
{
	char line[512];
	long value = 0;
	FILE *text = fopen(file, "r");
	while (text && fgets(line, sizeof line, text) && !sscanf(line, format, &value))
		;
	if (text)
		fclose(text);
	return value;
}

static long locked(void)
{
	return field("/proc/self/status", "VmLck: %ld") * 1024;
}

static void say(long held, int error)
{
	printf("%ld %d\n", held, error);
	fflush(stdout);
}

static void stay(long held, int error)
{
	say(held, error);
	for (;;)
		pause();
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

static void on_processor(pid_t thread, int number)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(number, &set);
	sched_setaffinity(thread, sizeof set, &set);
}

/* Pages of zeros without memory behind them: to walk them takes a thread about 40 ms per GiB, under the address space's lock. */
static char *zeros;

static void lay_zeros(long gib)
{
	zeros = room(gib * GIB);
	madvise(zeros, gib * GIB, MADV_NOHUGEPAGE);
}

static void *walks(void *gib)
{
	stage = 1;
	madvise(zeros, (long)gib * GIB, POPULATE_READ);
	stage = 2;
	return NULL;
}

/* What a thread does so many microseconds after the walk began. Threads are made before: that takes the address space's lock. */
struct step {
	long after;
	void *(*does)(void *);
	void *what;
};

static void *waits(void *step)
{
	while (!stage)
		usleep(200);
	usleep(((struct step *)step)->after);
	return ((struct step *)step)->does(((struct step *)step)->what);
}

/* Walks so many GiB, with these steps meanwhile; returns after all have ended, or at once where the walk is another thread's. */
static pthread_t threads[128], walker;

static void while_it_walks(long gib, struct step *steps, int count, int aside)
{
	stage = 0;
	for (int i = 0; i < count; i++)
		pthread_create(&threads[i], NULL, waits, &steps[i]);
	if (aside) {
		pthread_create(&walker, NULL, walks, (void *)gib);
		return;
	}
	walks((void *)gib);
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

/* The lowest page of the main stack, moved to where no stack is looked for, and locked: it grows as it is touched. */
static void moves_its_stack(void)
{
	unsigned long start = 0, end;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps) && !strstr(line, "[stack]"))
		;
	sscanf(line, "%lx-%lx", &start, &end);
	char *moved = mremap((void *)start, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)0x200000000000);
	if (mlock(moved, PAGE))
		stay(locked(), errno);
	for (long i = 1; i < 1024; i++)
		moved[-i * PAGE] = 1;
	stay(locked(), 0);
}

/* One thread replaces a mapping by a locked one while another grows it: both wait for the lock of the address space. */
static char *grown;

static void *replaces(void *unused)
{
	mmap(grown, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_LOCKED, -1, 0);
	return unused;
}

static void *grows(void *unused)
{
	char *moved = mremap(grown, PAGE, 4 * MIB, MREMAP_MAYMOVE);
	if (moved == MAP_FAILED)
		munmap(grown, PAGE);
	return unused;
}

static void replaced_while_it_grows(void)
{
	struct step steps[] = {{5000, replaces, NULL}, {20000, grows, NULL}};
	lay_zeros(4);
	for (int round = 0; round < 8 && locked() <= MIB; round++) {
		munlockall();
		grown = room(PAGE);
		while_it_walks(4, steps, 2, 0);
	}
	stay(locked(), 0);
}

/* A thread locks again what is locked, and is held up; meanwhile that is moved away, and something else lies in its place. */
static char *again;
static volatile pid_t again_tid;

static void *locks_again(void *unused)
{
	again_tid = syscall(SYS_gettid);
	mlock(again, MIB);
	return unused;
}

static void *spins(void *unused)
{
	on_processor(0, 0);
	while (stage < 3)
		;
	return unused;
}

static void moved_while_it_is_locked_again(void)
{
	struct step steps[] = {{0, spins, NULL}, {5000, locks_again, NULL}};
	struct sched_param none = {0};
	lay_zeros(4);
	walks((void *)4);
	again = room(MIB);
	mlock(again, MIB);
	for (int round = 0; round < 12 && locked() <= MIB; round++) {
		char *elsewhere = room(MIB);
		while_it_walks(4, steps, 2, 1);
		usleep(40000);
		on_processor(again_tid, 0);
		sched_setscheduler(again_tid, SCHED_IDLE, &none);
		on_processor(0, sysconf(_SC_NPROCESSORS_ONLN) - 1);
		pthread_join(walker, NULL);
		mremap(again, MIB, MIB, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere);
		mmap(again, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		usleep(300000);
		stage = 3;
		pthread_join(threads[0], NULL);
		pthread_join(threads[1], NULL);
		again = elsewhere;
	}
	stay(locked(), 0);
}

/* Linux 6.17 and 6.18 add to VmLck what is moved so, and take nothing away. */
static void moved_and_left(void)
{
	char *start = room(MIB);
	mlock(start, MIB);
	for (int i = 0; i < 4; i++) {
		char *moved = mremap(start, MIB, MIB, MREMAP_MAYMOVE | DONTUNMAP, NULL);
		if (moved == MAP_FAILED)
			stay(locked(), errno);
		munmap(start, MIB);
		start = moved;
	}
	stay(locked(), 0);
}

/* mlockall while another thread maps and unmaps. */
static void *maps(void *unused)
{
	while (!stage) {
		char *start = room(4 * MIB);
		for (volatile int i = 0; i < 3000; i++)
			;
		munmap(start, 4 * MIB);
	}
	return unused;
}

static void mapped_while_all_is_locked(char **argv)
{
	pthread_t thread;
	long most = 0;
	pthread_create(&thread, NULL, maps, NULL);
	for (int i = 0; i < 3000 && most <= atol(argv[2]); i++) {
		mlockall(MCL_CURRENT);
		if (locked() > most)
			most = locked();
		munlockall();
	}
	stage = 1;
	stay(most, 0);
}

/* A thread whose user time the kernel overstates, because it runs just when that is sampled, locks so many mappings that it takes long. */
enum { MAPPINGS = 60000, EACH = 32 };
#define LONG_START ((char *)0x100000000000)
static volatile int *shared;

static double coarse(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

static void *locks_for_long(void *unused)
{
	const double tick = 4e-3, lead = 3e-4, end = now() + 1;
	double phase = 0;
	prctl(PR_SET_TIMERSLACK, 1);
	for (int i = 0; i < 20; i++)
		for (double before = coarse(); coarse() == before; phase = now())
			;
	while (now() < end) {
		double next = phase + tick * (long)((now() - phase) / tick + 1);
		while (next - lead < now() + 20e-6)
			next += tick;
		struct timespec then = {(long)(next - lead), (long)((next - lead - (long)(next - lead)) * 1e9)};
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &then, NULL);
		double before = coarse();
		while (coarse() == before && now() < next + 3e-4)
			;
		if (coarse() != before)
			phase = now();
	}
	*shared = 1;
	syscall(SYS_mlock2, LONG_START, MAPPINGS * EACH * PAGE, 1);
	*shared = 2;
	return unused;
}

static void taken_for_counted(char **argv)
{
	long ask = atol(argv[2]);
	int file = memfd_create("pages", 0);
	pthread_t thread;
	ftruncate(file, EACH * PAGE);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!fork()) {
		char *start = room(ask);
		while (!*shared)
			usleep(100);
		usleep(2000);
		say(syscall(SYS_mlock2, start, ask, 1) ? 0 : ask, errno);
		for (;;)
			pause();
	}
	for (long i = 0; i < MAPPINGS; i++)
		mmap(LONG_START + i * EACH * PAGE, EACH * PAGE, i & 1 ? PROT_READ : PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_FIXED | MAP_POPULATE, file, 0);
	pthread_create(&thread, NULL, locks_for_long, NULL);
	pthread_join(thread, NULL);
	stay(locked(), 0);
}

/* Walks its zeros, with a thread that waits to write to its address space, and one whose call the gate looks into. */
static void *waits_to_write(void *unused)
{
	room(PAGE);
	return unused;
}

static void *locks_more(void *start)
{
	mlock(start, 2 * MIB);
	return NULL;
}

static void keeps_its_lock(char **argv)
{
	char *start = room(2 * MIB);
	struct step steps[] = {{20000, waits_to_write, NULL}, {40000, locks_more, start}};
	lay_zeros(atol(argv[2]));
	mlock(start, PAGE);
	say(0, 0);
	while_it_walks(atol(argv[2]), steps, 2, 1);
	usleep(200000);
	say(stage, 0);
	pthread_join(walker, NULL);
	stay(0, 0);
}

/* As many calls on their way as one pod may have, which all wait for the address space's lock; and one more, for which the gate looks at all. */
static void *locks_a_page(void *start)
{
	mlock(start, PAGE);
	return NULL;
}

static void keeps_all_readers(char **argv)
{
	char *start = room(MIB);
	struct step steps[65];
	for (long i = 0; i < 65; i++)
		steps[i] = (struct step){20000 + i * 2000, locks_a_page, start + i * PAGE};
	lay_zeros(atol(argv[2]));
	mlock(start, 65 * PAGE);
	say(0, 0);
	while_it_walks(atol(argv[2]), steps, 65, 1);
	usleep(500000);
	say(stage, 0);
	pthread_join(walker, NULL);
	stay(0, 0);
}

/* While what a call's range has locked is being read, a signal ends the call, and its thread makes another one. */
static char *other_range;

static void on_signal(int number)
{
	(void)number;
}

static void *locks_one_and_then_another(void *unused)
{
	again_tid = syscall(SYS_gettid);
	mlock(again, MIB);
	mlock(other_range, MIB);
	return unused;
}

static void *interrupts(void *unused)
{
	syscall(SYS_tgkill, getpid(), again_tid, SIGUSR1);
	return unused;
}

static void interrupted_while_it_is_read(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	struct step steps[] = {{10000, waits_to_write, NULL}, {30000, locks_one_and_then_another, NULL}, {80000, interrupts, NULL}};
	sigaction(SIGUSR1, &action, NULL);
	lay_zeros(8);
	again = room(MIB);
	other_range = room(MIB);
	mlock(again, MIB);
	for (int round = 0; round < 3 && locked() <= MIB; round++)
		while_it_walks(8, steps, 3, 0);
	stay(locked(), 0);
}

/* Children that a tracer keeps at the end of a call that locks a page: their registers still tell of it. */
static void left_at_the_end(char **argv)
{
	int status;
	for (int i = atoi(argv[2]); i--;) {
		pid_t child = fork();
		if (!child) {
			ptrace(PTRACE_TRACEME, 0, 0, 0);
			raise(SIGSTOP);
			mmap(NULL, atol(argv[3]), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
			for (;;)
				pause();
		}
		waitpid(child, &status, 0);
		for (long number = -1; number != SYS_mmap;) {
			ptrace(PTRACE_SYSCALL, child, 0, 0); /* its beginning */
			waitpid(child, &status, 0);
			number = ptrace(PTRACE_PEEKUSER, child, offsetof(struct user_regs_struct, orig_rax), 0);
			ptrace(PTRACE_SYSCALL, child, 0, 0); /* its end */
			waitpid(child, &status, 0);
		}
	}
	say(0, 0);
	if (argv[4])
		mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
	for (;;)
		pause();
}

/* Locks as much as it is told; another process shares its address space and is no child of it. */
static int sleeps(void *unused)
{
	for (;;)
		pause();
	return unused != NULL;
}

static void has_a_sibling(char **argv)
{
	char *start = room(atol(argv[2]) + MIB);
	if (!fork()) {
		int failed = mlock(start, atol(argv[2]));
		clone(sleeps, start + atol(argv[2]) + MIB, CLONE_VM | CLONE_PARENT | SIGCHLD, NULL);
		stay(failed ? 0 : atol(argv[2]), failed ? errno : 0);
	}
	for (;;)
		pause();
}

/* The same, with a child that shares it, other processes between the two, and a thread that goes on locking and unlocking a page. */
static void *toggles(void *start)
{
	for (;;) {
		mlock(start, PAGE);
		for (volatile int i = random() % 4000000; i--;)
			;
		munlock(start, PAGE);
	}
	return NULL;
}

static void toggles_with_a_child(char **argv)
{
	pthread_t thread;
	char *start = room(atol(argv[2]) + MIB);
	int failed = mlock(start, atol(argv[2]));
	for (int i = 0; i < 64; i++)
		if (!fork())
			sleeps(NULL);
	clone(sleeps, start + atol(argv[2]) + MIB, CLONE_VM | SIGCHLD, NULL);
	pthread_create(&thread, NULL, toggles, start + atol(argv[2]));
	stay(failed ? 0 : atol(argv[2]), failed ? errno : 0);
}

/* A thread's call waits while another thread makes the process another program, or its parent goes. */
static void *locks_its_area(void *start)
{
	mlock(start, MIB);
	return NULL;
}

static void becomes_another(char **argv)
{
	pthread_t thread;
	char *rest[] = {argv[0], "nothing", NULL};
	pthread_create(&thread, NULL, locks_its_area, room(MIB));
	usleep(100000);
	execv(argv[0], rest);
}

static void loses_its_parent(void)
{
	char *start = room(MIB);
	pid_t parent = fork();
	if (!parent) {
		if (!fork()) {
			say(0, 0);
			int failed = mlock(start, MIB);
			stay(failed ? 0 : MIB, failed ? errno : 0);
		}
		usleep(100000);
		_exit(0);
	}
	waitpid(parent, NULL, 0);
	for (;;)
		pause();
}

/* The first thread ends; what the process has locked is seen in another one's files alone. */
static void *goes_on(void *unused)
{
	usleep(100000);
	say(locked(), 0);
	for (;;)
		pause();
	return unused;
}

static void first_thread_ends(char **argv)
{
	pthread_t thread;
	mlock(room(atol(argv[2])), atol(argv[2]));
	pthread_create(&thread, NULL, goes_on, NULL);
	pthread_exit(NULL);
}

/* A tracer makes another call an mlock, at the stop that the child's own filter asks for: all filters are asked again. */
static void traced_into_another_call(char **argv)
{
	char *start = room(4 * MIB);
	int status;
	pid_t child = fork();
	if (!child) {
		struct sock_filter code[] = {
			BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
			BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		};
		struct sock_fprog program = {4, code};
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
		long result = syscall(SYS_getppid);
		stay(result ? 0 : atol(argv[2]), result ? errno : 0);
	}
	waitpid(child, &status, 0);
	ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESECCOMP);
	ptrace(PTRACE_CONT, child, 0, 0);
	waitpid(child, &status, 0);
	struct user_regs_struct registers;
	ptrace(PTRACE_GETREGS, child, 0, &registers);
	registers.orig_rax = SYS_mlock;
	registers.rdi = (unsigned long)start;
	registers.rsi = atol(argv[2]);
	ptrace(PTRACE_SETREGS, child, 0, &registers);
	ptrace(PTRACE_DETACH, child, 0, 0);
	sleeps(NULL);
}

/* A tracer stops a child whose call waits, and makes that a larger one. */
static void changed_while_it_waits(void)
{
	char *start = room(4 * MIB);
	int status;
	pid_t child = fork();
	if (!child) {
		int failed = mlock(start, PAGE);
		stay(failed ? 0 : PAGE, failed ? errno : 0);
	}
	char file[64];
	snprintf(file, sizeof file, "/proc/%d/syscall", child);
	while (field(file, "%ld") != SYS_mlock)
		usleep(1000);
	struct user_regs_struct registers;
	ptrace(PTRACE_SEIZE, child, 0, 0);
	ptrace(PTRACE_INTERRUPT, child, 0, 0);
	waitpid(child, &status, 0);
	ptrace(PTRACE_GETREGS, child, 0, &registers);
	say(registers.orig_rax, 0);
	registers.rsi = 4 * MIB;
	ptrace(PTRACE_SETREGS, child, 0, &registers);
	ptrace(PTRACE_DETACH, child, 0, 0);
	sleeps(NULL);
}

/* Threads that map a locked page and unmap it again, for ever. */
static void *maps_locked(void *unused)
{
	for (;;) {
		char *start = mmap(NULL, 8 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
		if (start != MAP_FAILED)
			munmap(start, 8 * PAGE);
	}
	return unused;
}

static void maps_in_threads(char **argv)
{
	pthread_t thread;
	for (int i = atoi(argv[2]); i--;)
		pthread_create(&thread, NULL, maps_locked, NULL);
	stay(0, 0);
}

/* Registers a buffer with io_uring, whose length another thread keeps changing. */
static volatile struct iovec buffer;

static void *changes(void *unused)
{
	for (;;)
		buffer.iov_len = buffer.iov_len == PAGE ? 4 * MIB : PAGE;
	return unused;
}

static void changes_a_list(void)
{
	struct io_uring_params parameters = {0};
	pthread_t thread;
	int ring = syscall(SYS_io_uring_setup, 4, &parameters);
	buffer.iov_base = room(4 * MIB);
	buffer.iov_len = PAGE;
	pthread_create(&thread, NULL, changes, NULL);
	for (int i = 0; ring >= 0 && i < 300 && field("/proc/self/status", "VmPin: %ld") < 1100; i++) {
		syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0);
		syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, (void *)&buffer, 1);
	}
	stay(field("/proc/self/status", "VmPin: %ld") * 1024, ring < 0 ? errno : 0);
}

static void *ring_room(void)
{
	void *start = NULL;
	posix_memalign(&start, 2 * MIB, 2 * MIB); /* in one huge page: the kernel maps it as one piece */
	madvise(start, 2 * MIB, MADV_HUGEPAGE);
	memset(start, 0, 2 * MIB);
	return start;
}

/* A ring that io_uring_setup makes of the program's own pages. */
static void lends_a_ring(void)
{
	struct io_uring_params parameters = {0};
	parameters.flags = 1 << 14 | 1 << 16; /* IORING_SETUP_NO_MMAP, IORING_SETUP_NO_SQARRAY */
	/* The last field of both, user_addr, has that name in newer headers only. */
	((unsigned long *)(&parameters.cq_off + 1))[-1] = (unsigned long)ring_room();
	((unsigned long *)(&parameters.sq_off + 1))[-1] = (unsigned long)ring_room();
	int ring = syscall(SYS_io_uring_setup, 16384, &parameters);
	stay(ring < 0 ? 0 : 16384 * 64L, ring < 0 ? errno : 0);
}

/* Frames of AF_XDP, in a network namespace of its own. */
static void shares_frames(void)
{
	char *start = room(4 * MIB);
	struct xdp_umem_reg frames = {(unsigned long)start, 4 * MIB, PAGE, 0, 0};
	int failed = unshare(CLONE_NEWUSER | CLONE_NEWNET);
	int descriptor = failed ? -1 : socket(AF_XDP, SOCK_RAW, 0);
	if (descriptor >= 0)
		failed = setsockopt(descriptor, SOL_XDP, XDP_UMEM_REG, &frames, sizeof frames);
	stay(descriptor < 0 || failed ? 0 : 4 * MIB, descriptor < 0 || failed ? errno : 0);
}

/* Buffers of performance events: beyond what the kernel gives each user, they are in VmPin. */
static void watches_itself(void)
{
	struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .exclude_kernel = 1};
	event.config = PERF_COUNT_SW_DUMMY;
	event.exclude_hv = 1;
	for (int i = 0; i < 3; i++) {
		int descriptor = syscall(SYS_perf_event_open, &event, 0, -1, -1, 0);
		mmap(NULL, 513 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
	}
	stay(field("/proc/self/status", "VmPin: %ld") * 1024, 0);
}

/* What the C library does for a large realloc, in a program with another thread that locks nothing either. */
static void grows_what_is_not_locked(void)
{
	struct step idle = {0, waits_to_write, NULL};
	char *start = room(2 * MIB);
	pthread_create(&walker, NULL, waits, &idle);
	char *moved = mremap(start, 2 * MIB, 8 * MIB, MREMAP_MAYMOVE);
	stay(0, moved == MAP_FAILED ? errno : 0);
}

/* Becomes a program whose address space ends below 3 GiB, where it is a 32-bit one (ADDR_LIMIT_3GB). */
static void becomes_narrow(char **argv)
{
	char *rest[] = {argv[2], NULL};
	personality(ADDR_LIMIT_3GB);
	execv(argv[2], rest);
}

static void nothing(void)
{
	stay(0, 0);
}

static const struct {
	const char *name;
	void (*way)(char **);
} ways[] = {
#define WAY(function) {#function, (void (*)(char **))(function)}
	WAY(moves_its_stack), WAY(replaced_while_it_grows), WAY(moved_while_it_is_locked_again), WAY(moved_and_left),
	WAY(mapped_while_all_is_locked), WAY(taken_for_counted), WAY(keeps_its_lock), WAY(keeps_all_readers), WAY(interrupted_while_it_is_read),
	WAY(left_at_the_end),
	WAY(has_a_sibling), WAY(toggles_with_a_child), WAY(becomes_another), WAY(loses_its_parent),
	WAY(first_thread_ends), WAY(traced_into_another_call), WAY(changed_while_it_waits), WAY(maps_in_threads),
	WAY(changes_a_list), WAY(lends_a_ring), WAY(shares_frames), WAY(watches_itself), WAY(becomes_narrow), WAY(grows_what_is_not_locked),
	WAY(nothing),
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof ways / sizeof *ways; i++)
		if (!strcmp(argv[1], ways[i].name))
			ways[i].way(argv);
	return 1;
}
