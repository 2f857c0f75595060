/* A process of a pod that tries to get past the gate; the first argument says how. Each way prints one line, and "ready" before it waits. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
#define AREA (16L << 20)

static char *area(void)
{
	char *start = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return start;
}

static long lock_pages(char *start, int *error)
{
	long held = 0;
	while (held < AREA && !mlock(start + held, PAGE))
		held += PAGE;
	*error = held < AREA ? errno : 0;
	return held;
}

static void stay(long held, int error)
{
	printf("%ld %d\n", held, error);
	fflush(stdout);
	for (;;)
		pause();
}

/* A program that locks all it can, and becomes another that does so again. */
static void executes(char **argv)
{
	int error;
	long held = lock_pages(area(), &error);
	if (argv[2]) {
		char *rest[] = {argv[0], "executes", NULL};
		execv(argv[0], rest);
	}
	stay(held, error);
}

static int sleeps(void *unused)
{
	for (;;)
		pause();
	return unused != NULL;
}

/* Locks as much as it is told, and has a child that shares its address space. */
static void shares(char **argv)
{
	int failed = mlock(area(), atol(argv[2]));
	clone(sleeps, area() + AREA, CLONE_VM | SIGCHLD, NULL);
	stay(failed ? 0 : atol(argv[2]), failed ? errno : 0);
}

static void *grabs(void *total)
{
	int error;
	__atomic_fetch_add((long *)total, lock_pages(area(), &error), __ATOMIC_SEQ_CST);
	return NULL;
}

static void races(char **argv)
{
	int count = atoi(argv[2]);
	long total = 0;
	pthread_t threads[64];
	for (int i = 0; i < count; i++)
		pthread_create(&threads[i], NULL, grabs, &total);
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	stay(total, 0);
}

/* A tracer that has a small lock become a large one at every stop that it gets. */
static void traces(void)
{
	char *start = area();
	pid_t child = fork();
	if (!child) {
		long held = 0;
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		for (int i = 0; i < 100; i++)
			held += !mlock(start, PAGE);
		printf("%ld 0\n", held);
		fflush(stdout);
		for (;;)
			pause();
	}
	int status;
	for (int stops = 0; stops < 400 && waitpid(child, &status, 0) == child && !WIFEXITED(status); stops++) {
		struct user_regs_struct registers;
		ptrace(PTRACE_GETREGS, child, 0, &registers);
		if (registers.orig_rax == SYS_mlock) {
			registers.rsi = AREA;
			ptrace(PTRACE_SETREGS, child, 0, &registers);
		}
		ptrace(PTRACE_SYSCALL, child, 0, 0);
	}
	ptrace(PTRACE_DETACH, child, 0, 0);
	sleeps(NULL);
}

static void on_signal(int number)
{
	(void)number;
}

/* Locks and unlocks while a timer fires; prints how often a call ended with EINTR, and with what was never heard of. */
static void interrupted(char **argv)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = atoi(argv[2]) ? SA_RESTART : 0};
	struct itimerval often = {{0, 2000}, {0, 2000}};
	char *start = area();
	long interrupts = 0, strange = 0;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < 5000; i++) {
		if (mlock(start + i % 300 * PAGE, PAGE)) {
			interrupts += errno == EINTR;
			strange += errno != EINTR && errno != ENOMEM;
		}
		if (i % 300 == 299)
			munlock(start, AREA);
	}
	memset(&often, 0, sizeof often);
	setitimer(ITIMER_REAL, &often, NULL);
	stay(interrupts, (int)strange);
}

/* A filter of its own on mlock: "action" is what it answers there, with "flags" of seccomp(2). */
static void nests(char **argv)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mlock, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, (unsigned)strtoul(argv[2], NULL, 0)),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {4, code};
	int error;
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, strtoul(argv[3], NULL, 0), &program) < 0)
		stay(-1, errno);
	long held = lock_pages(area(), &error);
	stay(held, error);
}

static void *floods(void *start)
{
	for (;;) {
		mlock(start, PAGE);
		munlock(start, PAGE);
	}
	return NULL;
}

static void flood(char **argv)
{
	pthread_attr_t small;
	pthread_t thread;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 << 10);
	for (int i = atoi(argv[2]); i--;)
		pthread_create(&thread, &small, floods, area());
	stay(0, 0);
}

int main(int argc, char **argv)
{
	(void)argc;
	if (!strcmp(argv[1], "executes"))
		executes(argv);
	else if (!strcmp(argv[1], "shares"))
		shares(argv);
	else if (!strcmp(argv[1], "races"))
		races(argv);
	else if (!strcmp(argv[1], "traces"))
		traces();
	else if (!strcmp(argv[1], "interrupted"))
		interrupted(argv);
	else if (!strcmp(argv[1], "nests"))
		nests(argv);
	else if (!strcmp(argv[1], "flood"))
		flood(argv);
	return 1;
}
