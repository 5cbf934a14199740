use std::collections::HashSet;

use graph::KV_BLOCK_TOKENS;
use rand_pcg::{
    Pcg64,
    rand_core::{Rng, SeedableRng},
};

use super::*;

/// Every block is in one place: free, in the tree, or a lease's own.
fn check(blocks: &KvBlocks, leases: &[&Lease]) {
    for (group, pool) in blocks.pools.iter().enumerate() {
        let mut seen = HashSet::new();
        for block in &pool.free {
            assert!(seen.insert(*block), "block {block} of group {group} is free twice");
        }
        for (_, node) in &pool.idle {
            let held = blocks.tree.held(*node, group);
            assert_eq!(held.holders, 0);
            assert!(seen.insert(held.block.unwrap()), "an idle block is elsewhere too");
        }
        let mut shared = HashSet::new();
        for lease in leases {
            for index in lease.first[group]..lease.tables[group].len() {
                let block = lease.tables[group][index];
                match lease.path.get(index) {
                    Some(node) => {
                        assert_eq!(blocks.tree.held(*node, group).block, Some(block));
                        shared.insert(block);
                    }
                    None => assert!(seen.insert(block), "a sequence's own block is elsewhere too"),
                }
            }
        }
        for block in shared {
            assert!(seen.insert(block), "a held block is elsewhere too");
        }
        assert_eq!(seen.len(), pool.total, "group {group}: no block is lost");
    }
}

fn text(len: usize, salt: u32) -> Vec<u32> {
    (0..len as u32).map(|i| i * 7 + salt).collect()
}

/// Runs a sequence to its end, as one prefill; returns the tokens found in the cache.
fn run(blocks: &mut KvBlocks, tokens: &[u32]) -> usize {
    let (mut lease, cached, _) = blocks.take_up(&tokens[..tokens.len() - 1]);
    for end in (cached..tokens.len()).step_by(16).skip(1).chain([tokens.len()]) {
        assert!(blocks.grow(&mut lease, end));
        blocks.commit(&mut lease, &tokens[..end]);
        check(blocks, &[&lease]);
    }
    blocks.release(lease, tokens);
    check(blocks, &[]);
    cached
}

#[test]
fn a_conversation_computes_only_what_is_new() {
    let mut blocks = KvBlocks::new(&[100, 100], &[None, Some(40)]);
    let mut history = text(70, 1);
    assert_eq!(run(&mut blocks, &history), 0);
    for turn in 0..10 {
        let before = history.len();
        history.extend(text(45, 1000 * (turn + 2)));
        assert_eq!(run(&mut blocks, &history), before, "all of the turns before, to the token");
    }
    // The same again computes the last token only.
    assert_eq!(run(&mut blocks, &history), history.len() - 1);
    // An edit of an early message goes on from there, though the window has long passed it.
    let mut edited = history[..83].to_vec();
    edited.extend(text(50, 5));
    assert_eq!(run(&mut blocks, &edited), 83);
}

#[test]
fn two_chats_share_a_system_prompt_and_running_ones_their_blocks() {
    let mut blocks = KvBlocks::new(&[100, 100], &[None, Some(64)]);
    let system = text(200, 3);
    let chat = |salt| [system.clone(), text(50, salt)].concat();
    assert_eq!(run(&mut blocks, &chat(10_000)), 0);
    assert_eq!(run(&mut blocks, &chat(20_000)), 200);
    let used = |blocks: &KvBlocks| blocks.usage().total - blocks.usage().free - blocks.usage().cached;
    let (first, n, _) = blocks.take_up(&system);
    let alone = used(&blocks);
    let (second, _, _) = blocks.take_up(&system);
    assert!(n >= 192);
    assert!(used(&blocks) - alone <= 2, "only the copies of the last block are its own");
    check(&blocks, &[&first, &second]);
    blocks.release(first, &system[..n]);
    blocks.release(second, &system[..n]);
    check(&blocks, &[]);
}

#[test]
fn a_window_whose_blocks_are_gone_is_computed_again() {
    // Room for two windows only: the blocks of the middle do not survive a long sequence.
    let mut blocks = KvBlocks::new(&[64, 5], &[None, Some(64)]);
    let long = text(1000, 1);
    assert_eq!(run(&mut blocks, &long), 0);
    assert_eq!(run(&mut blocks, &[&long[..], &[1, 2, 3]].concat()), 1000, "its end can be gone on from");
    let mut edited = long[..500].to_vec();
    edited.push(9);
    assert_eq!(run(&mut blocks, &edited), 0, "the keys that token 500 sees are gone");
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut blocks = KvBlocks::new(&[8], &[None]);
    let (a, b) = (text(3 * KV_BLOCK_TOKENS + 1, 1), text(3 * KV_BLOCK_TOKENS + 1, 9999));
    run(&mut blocks, &a);
    run(&mut blocks, &b);
    assert_eq!(run(&mut blocks, &a), a.len() - 1, "both fit; the first is now the later used");
    run(&mut blocks, &text(2 * KV_BLOCK_TOKENS, 5));
    assert_eq!(run(&mut blocks, &a), a.len() - 1);
    assert!(run(&mut blocks, &b) < b.len() - 1, "the end of the other was given up");
}

#[test]
fn nothing_is_left_of_what_is_forgotten() {
    let mut blocks = KvBlocks::new(&[20, 20], &[None, Some(33)]);
    run(&mut blocks, &text(300, 1));
    run(&mut blocks, &text(200, 7));
    blocks.forget();
    assert_eq!(blocks.tree.len(), 0);
    assert_eq!(blocks.usage(), Usage { total: 40, cached: 0, free: 40 });
}

#[test]
fn random_sequences_lose_no_block() {
    let mut rng = Pcg64::seed_from_u64(7);
    for (counts, windows) in [
        (&[40, 24, 30][..], &[None, Some(50), Some(100)][..]),
        // Windows only, one shorter than a block: a sequence may hold nothing of what it ends in.
        (&[20], &[Some(16)]),
        (&[20, 12], &[Some(16), Some(40)]),
    ] {
        random_sequences(&mut rng, counts, windows);
    }
}

fn random_sequences(rng: &mut Pcg64, counts: &[usize], windows: &[Option<usize>]) {
    let mut below = |n: usize| (rng.next_u64() % n as u64) as usize;
    let mut blocks = KvBlocks::new(counts, windows);
    let mut running: Vec<(Lease, Vec<u32>, usize)> = Vec::new();
    for _ in 0..4000 {
        match below(4) {
            0 if running.len() < 4 => {
                // Few different beginnings, so that prefixes are met.
                let mut tokens = text(below(150) + 1, below(3) as u32);
                tokens.extend(text(below(60), below(1000) as u32));
                let (lease, cached, copies) = blocks.take_up(&tokens[..tokens.len() - 1]);
                assert!(cached < tokens.len());
                assert!(copies.iter().all(|copy| copy.from != copy.to));
                running.push((lease, tokens, cached));
            }
            1 if !running.is_empty() => {
                let (lease, tokens, computed) = running.swap_remove(below(running.len()));
                blocks.release(lease, &tokens[..computed]);
            }
            _ if !running.is_empty() => {
                let at = below(running.len());
                let (lease, tokens, computed) = &mut running[at];
                let end = (*computed + 1 + below(40)).min(tokens.len());
                if blocks.grow(lease, end) {
                    *computed = end.max(*computed);
                    blocks.commit(lease, &tokens[..*computed]);
                } else {
                    let (lease, tokens, computed) = running.swap_remove(at);
                    blocks.release(lease, &tokens[..computed]);
                }
            }
            _ => (),
        }
        check(&blocks, &running.iter().map(|(lease, ..)| lease).collect::<Vec<_>>());
    }
    for (lease, tokens, computed) in running {
        blocks.release(lease, &tokens[..computed]);
    }
    blocks.forget();
    assert_eq!((blocks.usage().free, blocks.tree.len()), (counts.iter().sum(), 0));
}
