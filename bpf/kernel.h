/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The few kernel types that the programs read.
 *
 * CO-RE relocates every field by its name when the object is loaded, so a structure lists only
 * the fields in use, in any order, and vmlinux.h is not needed.
 * A field that some kernels lack is read behind bpf_core_field_exists().
 */
#ifndef PINWARDEN_KERNEL_H
#define PINWARDEN_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;

enum { false, true };

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1,
};

struct bpf_spin_lock {
	__u32 val;
};

/* include/linux/mm.h */
#define VM_LOCKED 0x2000

/* include/linux/sched.h */
#define PF_EXITING 0x4

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
	int level;
	struct cgroup *ancestors[];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct mm_struct {
	unsigned long locked_vm;
	struct task_struct *owner;
};

struct task_struct {
	unsigned int flags;
	struct mm_struct *mm;
	struct css_set *cgroups;
};

struct vm_area_struct {
	struct mm_struct *vm_mm;
};

/* since 6.12 */
struct vma_munmap_struct {
	unsigned long locked_vm;
};

struct inode {
	s64 i_size;
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
};

struct iovec {
	void *iov_base;
	u64 iov_len;
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	atomic_t refs;
} refcount_t;

struct io_mapped_ubuf {
	refcount_t refs;	/* since 6.12 */
};

struct io_ring_ctx {
	struct io_mapped_ubuf **user_bufs;
	unsigned int nr_user_bufs;
};

#pragma clang attribute pop

#endif
