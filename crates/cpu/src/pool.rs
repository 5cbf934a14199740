//! The threads of the device: they run one step together and meet at barriers inside it.
//!
//! A step of a small model lasts a few milliseconds and has hundreds of barriers, so waiting spins; between steps the
//! workers spin for a short while and then sleep.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
    },
    thread::{JoinHandle, Thread},
};

/// Spins of a worker between two steps before it sleeps: some 70 µs (a pause lasts about 64 cycles on Zen 4).
const SPINS_BEFORE_SLEEP: usize = 4_000;
/// Spins at a barrier before the thread lets others run, for machines with more threads than processors.
const SPINS_BEFORE_YIELD: usize = 2_000;

/// A job: called once on every thread with its index.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// Worker threads; the caller of [`Pool::run`] is thread 0.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

struct Shared {
    threads: usize,
    epoch: AtomicUsize,
    /// The current job: a pointer to a `Job` on the stack of `run`, valid until every thread is done with it.
    job: AtomicPtr<Job<'static>>,
    running: AtomicUsize,
    sleeping: Vec<AtomicBool>,
    stop: AtomicBool,
    barrier: Barrier,
}

/// A barrier that spins.
struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
}

impl Barrier {
    fn wait(&self) {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        spin_until(|| self.round.load(Ordering::Acquire) != round);
    }
}

fn spin_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        spins += 1;
        if spins > SPINS_BEFORE_YIELD { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// Ends the process when a worker panics: the others would wait for it at a barrier for ever. Kernels have no
/// reason to panic; one that does is a defect, and its message is on stderr by then.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Pool {
    /// `threads` threads in all, at least one.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            threads,
            epoch: AtomicUsize::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            running: AtomicUsize::new(0),
            sleeping: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            barrier: Barrier { threads, arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) },
        });
        let mut pool = Pool { shared: shared.clone(), workers: Vec::new() };
        for index in 1..threads {
            let shared = shared.clone();
            let handle = std::thread::Builder::new().name(format!("cpu-{index}")).spawn(move || shared.work(index))?;
            pool.workers.push((handle.thread().clone(), Some(handle)));
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Calls `job` on every thread and returns when all are done. `&mut self`: one job at a time.
    pub(crate) fn run(&mut self, job: Job<'_>) {
        let shared = &*self.shared;
        if shared.threads == 1 {
            return job(0);
        }
        // SAFETY: only the lifetime changes. The workers use the job between the epoch's change below and their
        // decrement of `running`; this function returns after the last decrement, while `job` is still borrowed.
        let job: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        shared.running.store(shared.threads - 1, Ordering::Relaxed);
        shared.job.store(std::ptr::from_ref(&job).cast_mut(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (worker, (thread, _)) in self.workers.iter().enumerate() {
            if shared.sleeping[worker + 1].load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let guard = AbortOnPanic;
        job(0);
        drop(guard);
        spin_until(|| shared.running.load(Ordering::Acquire) == 0);
    }

    /// Waits until every thread of the running job has come here.
    pub(crate) fn barrier(&self) -> impl Fn() + Sync + use<> {
        let shared = self.shared.clone();
        move || {
            if shared.threads > 1 {
                shared.barrier.wait();
            }
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::SeqCst) == seen {
                spins += 1;
                if spins < SPINS_BEFORE_SLEEP {
                    std::hint::spin_loop();
                    continue;
                }
                // Announced before the epoch is read again, so that `run` either sees the flag or is seen.
                self.sleeping[index].store(true, Ordering::SeqCst);
                while self.epoch.load(Ordering::SeqCst) == seen {
                    std::thread::park();
                }
                self.sleeping[index].store(false, Ordering::SeqCst);
            }
            seen = self.epoch.load(Ordering::SeqCst);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let guard = AbortOnPanic;
            // SAFETY: `run` stored a pointer to a job that stays alive until `running` falls to zero.
            let job = unsafe { *self.job.load(Ordering::Relaxed) };
            job(index);
            drop(guard);
            self.running.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker that panicked has aborted the process; there is nothing to report here.
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_and_meets() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for round in 0..200 {
                let (before, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
                let barrier = pool.barrier();
                pool.run(&|_| {
                    for phase in 1..4 {
                        before.fetch_add(1, Ordering::SeqCst);
                        barrier();
                        if before.load(Ordering::SeqCst) != phase * threads {
                            wrong.fetch_add(1, Ordering::SeqCst);
                        }
                        barrier();
                    }
                });
                assert_eq!(wrong.load(Ordering::SeqCst), 0);
                if round == 100 {
                    std::thread::sleep(std::time::Duration::from_millis(20)); // long enough to fall asleep
                }
            }
        }
    }
}
