/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* From a task to its account, and bytes to the account. */
#ifndef PINWARDEN_ACCOUNTS_BPF_H
#define PINWARDEN_ACCOUNTS_BPF_H

#include "maps.bpf.h"

#include <bpf/bpf_core_read.h>

static __always_inline void count_lost(u32 reason)
{
	u64 *count = bpf_map_lookup_elem(&lost, &reason);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Return the id of the nearest ancestor with an account, or 0. */
static __noinline u64 account_of(struct css_set *cgroups)
{
	struct cgroup *cgroup = BPF_CORE_READ(cgroups, dfl_cgrp);
	int level = BPF_CORE_READ(cgroup, level);

	/* The pod's level is within reach however deep its processes nest cgroups. */
	if (level >= ACCOUNT_LEVELS)
		level = ACCOUNT_LEVELS - 1;
#pragma clang loop unroll(disable)
	for (int i = 0; i < ACCOUNT_LEVELS; i++, level--) {
		struct cgroup *ancestor = NULL;
		u64 id;

		if (level < 0)
			break;
		bpf_core_read(&ancestor, sizeof(ancestor), &cgroup->ancestors[level]);
		id = BPF_CORE_READ(ancestor, kn, id);
		if (bpf_map_lookup_elem(&accounts, &id))
			return id;
	}
	return 0;
}

static __always_inline void charge(u64 cgroup, u32 source, s64 bytes)
{
	struct account *account;

	if (!cgroup || !bytes)
		return;
	account = bpf_map_lookup_elem(&accounts, &cgroup);
	if (!account) {
		count_lost(LOST_ACCOUNT_GONE);
		return;
	}
	/* The verifier must see the bound on the very register that becomes the index. */
	asm volatile("" : "+r"(source));
	if (source < SOURCES)
		__sync_fetch_and_add(&account->bytes[source], bytes);
}

#endif
