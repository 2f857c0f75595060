// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The ledger: how much memory is pinned, by cgroup and source, to the byte.
 *
 * Accounts. User space inserts an account for every cgroup that it wants counted. A charge goes to
 * the nearest ancestor with an account. A task without one is not counted.
 *
 * mlock, by difference. Each address space has one state with the bytes that its account has for
 * it. A program that runs after a change of mm->locked_vm compares the two and adds the difference.
 * So a later program repairs what an earlier one missed. That includes mlock, mlock2, mlockall,
 * MAP_LOCKED, the mappings of memfd_secret, and growth under MCL_FUTURE. A driver that counts in
 * mm->locked_vm (VFIO) is included too, from the next change of a mapping until the address space
 * ends.
 *
 * The end of an address space has one program. If the kernel skips it, because the same program
 * already runs on this processor, the charge stays until the mm_struct is used again.
 *
 * shm_lock and io_uring, by object. A segment or a registered buffer has one entry, with the
 * cgroup that pays, from the pin to the unpin. Munmap and exit change nothing (P6). The payer is
 * the task that asked for the pin, and stays the payer if that task moves (P3, P10).
 *
 * A task that moves. Its locked memory is a property of its address space and moves with the owner
 * of the address space (P10): at once, by the tracepoint cgroup_attach_task. If the first thread of
 * the process has exited, it moves at its next change. Every other program looks for the owner's
 * account again too. So an account that is created later takes over an address space at its next
 * change.
 *
 * Kernels. One object serves Linux 6.1 and 6.12; others are not tried. The loader leaves out a
 * program whose function the kernel lacks, or that the kernel refuses. A function that the compiler inlines can have a program which never runs,
 * so the self-test decides which sources count.
 */
#include "accounts.bpf.h"

#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

const volatile u64 page_size = 4096;	/* the loader sets it before the load */

/* ---- mlock ---- */

static __always_inline struct address_space_state *create_state(u64 key)
{
	struct address_space_state fresh = {};

	/* Another thread of this address space may be first. */
	bpf_map_update_elem(&address_spaces, &key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&address_spaces, &key);
}

/* Make the account of the owner have what mm->locked_vm has. Return whether the owner moved. */
static __always_inline bool charge_difference(struct mm_struct *mm)
{
	u64 key = (u64)mm, previous, cgroup = 0;
	struct css_set *cgroups = NULL;
	struct address_space_state *state;
	struct task_struct *owner;
	s64 before, now;

	state = bpf_map_lookup_elem(&address_spaces, &key);
	if (!state && !mm->locked_vm)
		return false;
	owner = mm->owner;
	if (owner) {
		cgroups = BPF_CORE_READ(owner, cgroups);
		cgroup = account_of(cgroups);
	}
	if (!state) {
		if (!cgroup)
			return false;
		state = create_state(key);
		if (!state) {
			count_lost(LOST_ADDRESS_SPACE_NOT_STORED);
			return false;
		}
	}
	bpf_spin_lock(&state->lock);
	previous = state->cgroup;
	before = state->charged;
	now = (s64)(mm->locked_vm * page_size);
	/* The owner has exited and no task took over: the payer stays. */
	if (!owner)
		cgroup = previous;
	state->cgroup = cgroup;
	state->charged = now;
	bpf_spin_unlock(&state->lock);
	if (previous == cgroup) {
		charge(cgroup, SOURCE_MLOCK, now - before);
	} else {
		charge(previous, SOURCE_MLOCK, -before);
		charge(cgroup, SOURCE_MLOCK, now);
	}
	return mm->owner != owner || (owner && BPF_CORE_READ(owner, cgroups) != cgroups);
}

static __noinline int sync(struct mm_struct *mm)
{
	/* An owner that moves meanwhile was synchronized before this program wrote the old cgroup. */
	if (charge_difference(mm))
		charge_difference(mm);
	return 0;
}

static __always_inline int sync_current(void)
{
	struct mm_struct *mm = bpf_get_current_task_btf()->mm;

	if (mm)
		sync(mm);
	return 0;
}

SEC("fexit/apply_vma_lock_flags")
int BPF_PROG(mlock_range)
{
	return sync_current();
}

SEC("fexit/apply_mlockall_flags")
int BPF_PROG(mlock_all)
{
	return sync_current();
}

/* MAP_LOCKED, mmap and shmat under MCL_FUTURE, and memfd_secret, which sets VM_LOCKED itself. */
SEC("fexit/mmap_region")
int BPF_PROG(map_region, struct file *file, unsigned long addr, unsigned long len,
	     unsigned long vm_flags)
{
	if (!(vm_flags & VM_LOCKED)) {
		/* Keeps clang from an OR of the flag and the pointer, which the verifier rejects. */
		asm volatile("" ::: "memory");
		if (!file)
			return 0;
	}
	return sync_current();
}

SEC("fexit/do_brk_flags")
int BPF_PROG(grow_heap)
{
	return sync_current();
}

/* A heap that shrinks: 6.1 unmaps it by a function with too many arguments for a trampoline. */
SEC("fexit/__x64_sys_brk")
int BPF_PROG(set_heap_x86)
{
	return sync_current();
}

SEC("fexit/__arm64_sys_brk")
int BPF_PROG(set_heap_arm64)
{
	return sync_current();
}

SEC("fexit/__x64_sys_mremap")
int BPF_PROG(remap_x86)
{
	return sync_current();
}

SEC("fexit/__arm64_sys_mremap")
int BPF_PROG(remap_arm64)
{
	return sync_current();
}

SEC("fexit/expand_downwards")
int BPF_PROG(grow_stack, struct vm_area_struct *vma)
{
	struct mm_struct *mm = vma->vm_mm;

	if (mm)
		sync(mm);
	return 0;
}

/* 6.12 */
SEC("fexit/vms_complete_munmap_vmas")
int BPF_PROG(unmap_vmas, struct vma_munmap_struct *vms)
{
	return vms->locked_vm ? sync_current() : 0;
}

/* 6.1 */
SEC("fexit/do_mas_munmap")
int BPF_PROG(unmap_range)
{
	return sync_current();
}

SEC("fentry/exit_mmap")
int BPF_PROG(end_address_space, struct mm_struct *mm)
{
	struct address_space_state *state;
	u64 key = (u64)mm, cgroup;
	s64 bytes;

	state = bpf_map_lookup_elem(&address_spaces, &key);
	if (!state)
		return 0;
	bpf_spin_lock(&state->lock);
	cgroup = state->cgroup;
	bytes = state->charged;
	state->charged = 0;
	bpf_spin_unlock(&state->lock);
	charge(cgroup, SOURCE_MLOCK, -bytes);
	bpf_map_delete_elem(&address_spaces, &key);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(move_task, struct cgroup *cgroup, const char *path, struct task_struct *task)
{
	struct mm_struct *mm = task->mm;

	/* Nothing keeps the address space of a task that exits. */
	if (mm && !(task->flags & PF_EXITING))
		sync(mm);
	return 0;
}

/* The owner exits, while a task of another process uses its address space. */
SEC("fexit/mm_update_next_owner")
int BPF_PROG(change_owner, struct mm_struct *mm)
{
	if (mm)
		sync(mm);
	return 0;
}

/* ---- objects ---- */

static __always_inline void charge_object(u64 key, u64 number, u32 source, s64 bytes)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct object object = {
		.number = number, .source = source, .bytes = bytes, .references = 1,
	};
	struct object *stale = bpf_map_lookup_elem(&objects, &key);

	if (stale) {
		if (stale->references > 0) {
			count_lost(LOST_RELEASE_UNSEEN);
			charge(stale->cgroup, stale->source, -stale->bytes);
		}
		bpf_map_delete_elem(&objects, &key);
	}
	object.cgroup = account_of(task->cgroups);
	/* A segment can be locked again, by a task with an account, and its payer stays. */
	if (!object.cgroup && source != SOURCE_SHM_LOCK)
		return;
	if (bpf_map_update_elem(&objects, &key, &object, BPF_ANY)) {
		count_lost(LOST_OBJECT_NOT_STORED);
		return;
	}
	charge(object.cgroup, source, bytes);
}

/* ---- shm_lock ---- */

/* SHM_LOCK, SHM_UNLOCK, and the destruction of a segment (shm_destroy), which unlocks it. */
SEC("fexit/shmem_lock")
int BPF_PROG(lock_segment, struct file *file, int lock, void *ucounts, int ret)
{
	struct inode *inode = file->f_inode;
	u64 key = (u64)inode, number;
	struct object *object;
	s64 size;

	if (ret)
		return 0;
	object = bpf_map_lookup_elem(&objects, &key);
	if (lock) {
		number = inode->i_ino;
		size = inode->i_size;
		/* The kernel allows a second SHM_LOCK, and the first payer stays. */
		if (!object || object->number != number)
			charge_object(key, number, SOURCE_SHM_LOCK,
				      (size + page_size - 1) & -(s64)page_size);
		return 0;
	}
	if (!object)
		return 0;
	charge(object->cgroup, SOURCE_SHM_LOCK, -object->bytes);
	bpf_map_delete_elem(&objects, &key);
	return 0;
}

/* ---- io_uring ---- */

SEC("fexit/io_sqe_buffer_register")
int BPF_PROG(register_buffer, struct io_ring_ctx *ring, struct iovec *iov, void *pimu,
	     void *last_hpage, int ret)
{
	u64 base, end, where = 0, imu = 0;

	/* The verifier knows no pointer to a pointer. */
	if (ret || bpf_get_func_arg(ctx, 2, &where))
		return 0;
	bpf_probe_read_kernel(&imu, sizeof(imu), (void *)where);
	base = (u64)iov->iov_base;
	/* A sparse table has entries without a buffer, which share one dummy. */
	if (!base || !imu)
		return 0;
	end = (base + iov->iov_len + page_size - 1) & -page_size;
	charge_object(imu, 0, SOURCE_IO_URING, end - (base & -page_size));
	return 0;
}

static __always_inline bool has_references(void)
{
	return bpf_core_field_exists(((struct io_mapped_ubuf *)0)->refs);
}

/*
 * Rings can share a buffer since 6.12 (IORING_REGISTER_CLONE_BUFFERS), and the last one unpins it.
 * The kernel's counter falls after this program, so two rings that release at once would both see
 * 2. This ledger counts for itself. When its count is 0 and the kernel's is not yet 1, the entry
 * stays without a charge, because a clone that is not counted yet may exist (see clone_buffers).
 */
SEC("fentry/io_buffer_unmap")
int BPF_PROG(release_buffer)
{
	u64 where = 0, imu = 0;
	struct object *object;
	u32 *inside;

	if (bpf_get_func_arg(ctx, 1, &where))
		return 0;
	bpf_probe_read_kernel(&imu, sizeof(imu), (void *)where);
	object = bpf_map_lookup_elem(&objects, &imu);
	if (!object)
		return 0;
	/* A clone that fails releases references that were never counted. */
	inside = bpf_task_storage_get(&cloning, bpf_get_current_task_btf(), NULL, 0);
	if (inside && *inside)
		return 0;
	if (__sync_fetch_and_add(&object->references, -1) == 1)
		charge(object->cgroup, SOURCE_IO_URING, -object->bytes);
	else
		return 0;
	if (!has_references() || BPF_CORE_READ((struct io_mapped_ubuf *)imu, refs.refs.counter) == 1)
		bpf_map_delete_elem(&objects, &imu);
	return 0;
}

SEC("fentry/io_register_clone_buffers")
int BPF_PROG(begin_clone)
{
	u32 *inside = bpf_task_storage_get(&cloning, bpf_get_current_task_btf(), NULL,
					   BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (inside)
		*inside = 1;
	return 0;
}

static long clone_buffer(u32 index, struct io_mapped_ubuf ***buffers)
{
	struct object *object;
	u64 imu = 0;

	bpf_probe_read_kernel(&imu, sizeof(imu), *buffers + index);
	object = bpf_map_lookup_elem(&objects, &imu);
	/* The source may have released its own reference before this clone was counted. */
	if (object && __sync_fetch_and_add(&object->references, 1) == 0)
		charge(object->cgroup, SOURCE_IO_URING, object->bytes);
	return 0;
}

/* The ring had no buffer before, and its lock is still held: all its buffers are clones. */
SEC("fexit/io_register_clone_buffers")
int BPF_PROG(clone_buffers, struct io_ring_ctx *ring, void *arg, int ret)
{
	u32 *inside = bpf_task_storage_get(&cloning, bpf_get_current_task_btf(), NULL, 0);
	struct io_mapped_ubuf **buffers;

	if (inside)
		*inside = 0;
	if (ret)
		return 0;
	buffers = BPF_CORE_READ(ring, user_bufs);
	bpf_loop(BPF_CORE_READ(ring, nr_user_bufs), clone_buffer, &buffers, 0);
	return 0;
}
