/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Constants and structures that the programs share with user space.
 *
 * `operator/pinwarden/node/ebpf/accounts.py` mirrors this file. A unit test parses it, so every
 * enum below numbers its members from zero and has no explicit values.
 */
#ifndef PINWARDEN_H
#define PINWARDEN_H

/* What pinned the memory. The order is the order of `account.bytes`. */
enum source {
	SOURCE_MLOCK,		/* VMAs counted in mm->locked_vm */
	SOURCE_SHM_LOCK,	/* System V segments with SHM_LOCK */
	SOURCE_IO_URING,	/* registered buffers */
	SOURCES,
};

/* Why a charge is not in its account. The index of the map `lost`, which counts charges. */
enum lost_reason {
	LOST_ADDRESS_SPACE_NOT_STORED,	/* `address_spaces` had no room or no memory */
	LOST_OBJECT_NOT_STORED,		/* `objects` had no room or no memory */
	LOST_ACCOUNT_GONE,		/* user space deleted the account meanwhile */
	LOST_RELEASE_UNSEEN,		/* the address of an object was used again */
	LOST_REASONS,
};

/*
 * The value of the map `accounts`. The key is the id of a cgroup of the default hierarchy, which
 * is the inode number of its directory. User space inserts zeros, and deletes an account only
 * when its cgroup is gone and all bytes are 0. The kernel never uses an id again.
 */
struct account {
	__s64 bytes[SOURCES];
};

/* Cgroups this deep or deeper are charged to an ancestor that is less deep. The root has 0. */
#define ACCOUNT_LEVELS 32

#define MAX_ACCOUNTS 16384
#define MAX_ADDRESS_SPACES 65536
#define MAX_OBJECTS 262144

#endif
