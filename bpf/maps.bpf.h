/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Every map of the ledger, with who writes it and who reads it. */
#ifndef PINWARDEN_MAPS_BPF_H
#define PINWARDEN_MAPS_BPF_H

#include "kernel.h"

#include <bpf/bpf_helpers.h>

#include "pinwarden.h"

/* What the accounts have for one address space. The lock makes "compare and replace" one step. */
struct address_space_state {
	struct bpf_spin_lock lock;
	s64 charged;
	u64 cgroup;
};

struct object {
	u64 cgroup;
	u64 number;	/* of the inode, which another IPC namespace may have too */
	s64 bytes;
	u32 source;
	s32 references;
};

/* User space inserts, deletes and reads. Programs add to the bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ACCOUNTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct account);
} accounts SEC(".maps");

/* Programs only. The key is the address of the mm_struct. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ADDRESS_SPACES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct address_space_state);
} address_spaces SEC(".maps");

/* Programs only. The key is the address of the inode or of the io_mapped_ubuf. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_OBJECTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct object);
} objects SEC(".maps");

/* Programs add, user space reads. The index is a lost_reason. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LOST_REASONS);
	__type(key, u32);
	__type(value, u64);
} lost SEC(".maps");

/* Programs only: whether a task is inside io_register_clone_buffers(). */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u32);
} cloning SEC(".maps");

#endif
