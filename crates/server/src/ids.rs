//! Names for requests and answers, seeds, and the time.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// A number that no one else has: not secret, and not to be guessed by accident.
pub(crate) fn random_u64() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // The keys of the standard library's hasher are drawn from the system's generator, and differ from call to call.
    RandomState::new().hash_one((COUNT.fetch_add(1, Ordering::Relaxed), now_ns()))
}

/// `prefix` and 24 hexadecimal digits.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", random_u64(), random_u64() as u32)
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| new_id("call_")).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 29));
    }
}
