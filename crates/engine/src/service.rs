//! An engine on a thread of its own, for many callers.

use std::{
    collections::HashMap,
    ops::{ControlFlow, Deref},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    Engine, EngineError, Event, Model, Pooling, Request, Stats,
    scheduler::{Outputs, SequenceId},
};

/// How a service behaves under load.
#[derive(Clone, Copy, Debug)]
pub struct ServiceOptions {
    /// Sequences that wait at most; more are refused.
    pub queue: usize,
    /// Time between two tokens of a running sequence that prompts of others must not exceed, where a least step allows.
    pub gap: Duration,
}

impl Default for ServiceOptions {
    fn default() -> ServiceOptions {
        ServiceOptions { queue: 256, gap: Duration::from_millis(250) }
    }
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// As many wait as may.
    #[error("the queue is full: {waiting} of {limit} are waiting")]
    QueueFull {
        /// Sequences that wait.
        waiting: usize,
        /// Sequences that may.
        limit: usize,
    },
    /// One request is for more than can ever wait.
    #[error("{choices} answers to one prompt, and {most} fit into the slots and the queue")]
    TooManyChoices {
        /// Answers asked for.
        choices: usize,
        /// What could be taken from an idle service.
        most: usize,
    },
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopped,
    /// The request itself cannot be.
    #[error(transparent)]
    Refused(#[from] EngineError),
}

/// Hears what happens to the sequences of a request: the index of the choice, and the event. It is called on the
/// engine's thread, between steps: it must not block.
///
/// With [`ControlFlow::Break`] it says that nobody listens any more: what is left of the request is cancelled before
/// the next step, and the sink is dropped without another word. A sink that never broke off, and is dropped before each
/// choice had its last event, belonged to a service that is gone.
pub type Sink = Box<dyn FnMut(usize, Event) -> ControlFlow<()> + Send>;

/// Time that a stopping service with nothing left to run waits for a further prompt of what it ran.
const LINGER: Duration = Duration::from_millis(50);

/// Many callers' way to one engine. Cheap to clone; reads as the [`Model`].
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    model: Arc<Model>,
    options: ServiceOptions,
    commands: mpsc::Sender<Command>,
    /// Sequences submitted that have not started.
    queued: AtomicUsize,
    next_ticket: AtomicU64,
    /// Nothing new is taken.
    stopped: AtomicBool,
    /// The thread runs no more.
    gone: AtomicBool,
    stats: Mutex<Stats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Command {
    Generate { ticket: u64, request: Box<Request>, choices: usize, sink: Sink },
    Embed { ticket: u64, ids: Vec<u32>, pooling: Pooling, deadline: Option<Instant>, sink: Sink },
    Cancel(u64),
    Stop(Instant),
}

/// Stands for a request that was taken. Dropped, it cancels what has not ended.
#[must_use = "a dropped ticket cancels its request"]
pub struct Ticket {
    id: u64,
    commands: mpsc::Sender<Command>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Where the service is gone there is nothing to cancel.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

impl Deref for Service {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.shared.model
    }
}

impl Service {
    /// Moves an engine to a thread of its own.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(mut engine: Engine, options: ServiceOptions) -> std::io::Result<Service> {
        let (commands, inbox) = mpsc::channel();
        engine.scheduler.set_gap(options.gap);
        let shared = Arc::new(Shared {
            model: engine.model.clone(),
            options,
            commands,
            queued: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            stats: Mutex::new(engine.scheduler.stats()),
            thread: Mutex::new(None),
        });
        let worker = Worker { engine, shared: shared.clone(), tickets: HashMap::new(), sequences: HashMap::new() };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker.work(&inbox))?;
        *lock(&shared.thread) = Some(thread);
        Ok(Service { shared })
    }

    /// Queues `choices` answers to one prompt; choice `i` has the seed plus `i`.
    ///
    /// # Errors
    /// Where the request cannot be run, the queue is full, or the service is stopping.
    pub fn submit(&self, request: Request, choices: usize, sink: Sink) -> Result<Ticket, SubmitError> {
        self.check(&request)?;
        self.tokenizer()?;
        self.count_in(choices)?;
        self.send(choices, |ticket| Command::Generate { ticket, request: Box::new(request), choices, sink })
    }

    /// Queues a further prompt of a request that is under way. Neither a full queue nor a stop in progress refuses it:
    /// what was taken is finished, within the grace of [`Service::stop`]. As nothing else bounds them, callers bound
    /// how many they add; and they add the next one as soon as they hear of an end, as a stopping service that has
    /// nothing to run does not wait long.
    ///
    /// # Errors
    /// Where the request cannot be run, or the engine's thread has ended.
    pub fn submit_more(&self, request: Request, choices: usize, sink: Sink) -> Result<Ticket, SubmitError> {
        self.check(&request)?;
        self.tokenizer()?;
        if !self.is_alive() {
            return Err(SubmitError::Stopped);
        }
        self.shared.queued.fetch_add(choices, Ordering::SeqCst);
        self.send(choices, |ticket| Command::Generate { ticket, request: Box::new(request), choices, sink })
    }

    /// Queues a text to be embedded; the sink hears [`Event::Embedding`], `[hidden]` of length 1, or [`Event::Failed`]
    /// with [`EngineError::Deadline`] where the deadline passed before.
    ///
    /// # Errors
    /// As [`Service::submit`].
    pub fn embed(
        &self,
        ids: Vec<u32>,
        pooling: Pooling,
        deadline: Option<Instant>,
        sink: Sink,
    ) -> Result<Ticket, SubmitError> {
        self.check_ids(&ids)?;
        self.count_in(1)?;
        self.send(1, |ticket| Command::Embed { ticket, ids, pooling, deadline, sink })
    }

    /// Counts sequences among those that wait, where they may.
    fn count_in(&self, sequences: usize) -> Result<(), SubmitError> {
        let shared = &self.shared;
        if shared.stopped.load(Ordering::SeqCst) {
            return Err(SubmitError::Stopped);
        }
        // Those that find a free slot do not wait.
        let stats = *lock(&shared.stats);
        let most = shared.options.queue + stats.slots;
        if sequences > most {
            return Err(SubmitError::TooManyChoices { choices: sequences, most });
        }
        let limit = shared.options.queue + stats.slots.saturating_sub(stats.running);
        let waiting = shared.queued.fetch_add(sequences, Ordering::SeqCst);
        if waiting + sequences > limit {
            shared.queued.fetch_sub(sequences, Ordering::SeqCst);
            return Err(SubmitError::QueueFull { waiting, limit });
        }
        Ok(())
    }

    /// Hands sequences that were counted to the thread.
    fn send(&self, sequences: usize, command: impl FnOnce(u64) -> Command) -> Result<Ticket, SubmitError> {
        let shared = &self.shared;
        let id = shared.next_ticket.fetch_add(1, Ordering::Relaxed);
        if shared.commands.send(command(id)).is_err() {
            shared.queued.fetch_sub(sequences, Ordering::SeqCst);
            return Err(SubmitError::Stopped);
        }
        Ok(Ticket { id, commands: shared.commands.clone() })
    }

    /// Whether the engine's thread runs. It ends by [`Service::stop`], or by a panic, and nothing starts it again.
    pub fn is_alive(&self) -> bool {
        !self.shared.gone.load(Ordering::SeqCst)
    }

    /// The books as they stood after the last step.
    pub fn stats(&self) -> Stats {
        Stats { waiting: self.shared.queued.load(Ordering::SeqCst), ..*lock(&self.shared.stats) }
    }

    /// Takes nothing new, lets what was taken go on for `grace` at most, ends the rest, and waits for the thread.
    pub fn stop(&self, grace: Duration) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = self.shared.commands.send(Command::Stop(Instant::now() + grace));
        if let Some(thread) = lock(&self.shared.thread).take() {
            // A panic there was printed there, and its requests ended with it.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The engine's thread.
struct Worker {
    engine: Engine,
    shared: Arc<Shared>,
    tickets: HashMap<u64, Taken>,
    sequences: HashMap<SequenceId, Of>,
}

/// Says that the thread is gone, however it ends.
struct Gone(Arc<Shared>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.0.gone.store(true, Ordering::SeqCst);
    }
}

/// A request that was taken.
struct Taken {
    /// `None` where nobody listens any more.
    sink: Option<Sink>,
    sequences: Vec<SequenceId>,
    /// Sequences that have not ended.
    left: usize,
}

/// What a sequence belongs to.
struct Of {
    ticket: u64,
    choice: usize,
    started: bool,
}

impl Worker {
    fn work(mut self, inbox: &mpsc::Receiver<Command>) {
        // Dropped before the sinks are: whose sink is dropped finds the service gone.
        let _gone = Gone(self.shared.clone());
        let mut outputs = Vec::new();
        let mut end: Option<Instant> = None;
        loop {
            // Asleep where there is nothing to run; the shared part keeps the channel open, so time is looked at.
            if self.engine.scheduler.is_idle() && end.is_none() {
                match inbox.recv_timeout(Duration::from_secs(3600)) {
                    Ok(command) => self.obey(command, &mut end, &mut outputs),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            while let Ok(command) = inbox.try_recv() {
                self.obey(command, &mut end, &mut outputs);
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                self.engine.scheduler.cancel_all(&mut outputs);
            }
            self.engine.scheduler.step(&mut outputs);
            self.deliver(&mut outputs);
            if let Some(at) = end
                && self.engine.scheduler.is_idle()
            {
                // What ended just now may have a further prompt on its way.
                let wait = LINGER.min(at.saturating_duration_since(Instant::now()));
                match inbox.recv_timeout(wait) {
                    Ok(command) => self.obey(command, &mut end, &mut outputs),
                    Err(_) => return,
                }
            }
        }
    }

    fn obey(&mut self, command: Command, end: &mut Option<Instant>, outputs: &mut Outputs) {
        match command {
            Command::Generate { ticket, request, choices, sink } => {
                let tokenizer = self.engine.model.tokenizer.clone().expect("submit looked");
                let sequences = self.engine.scheduler.submit(&request, choices, &tokenizer);
                self.take(ticket, sequences, sink);
            }
            Command::Embed { ticket, ids, pooling, deadline, sink } => {
                let sequence = self.engine.scheduler.submit_embedding(ids, pooling, deadline);
                self.take(ticket, vec![sequence], sink);
            }
            Command::Cancel(ticket) => {
                let sequences = self.tickets.get(&ticket).map_or(Vec::new(), |taken| taken.sequences.clone());
                sequences.into_iter().for_each(|id| self.engine.scheduler.cancel(id, outputs));
            }
            Command::Stop(at) => *end = Some(end.map_or(at, |end| end.min(at))),
        }
    }

    fn take(&mut self, ticket: u64, sequences: Vec<SequenceId>, sink: Sink) {
        for (choice, id) in sequences.iter().enumerate() {
            self.sequences.insert(*id, Of { ticket, choice, started: false });
        }
        let left = sequences.len();
        self.tickets.insert(ticket, Taken { sink: Some(sink), sequences, left });
    }

    /// Tells what happened, and cancels what nobody listens to.
    fn deliver(&mut self, outputs: &mut Outputs) {
        loop {
            // Before anyone hears of it: who hears of an end finds it counted.
            *lock(&self.shared.stats) = self.engine.scheduler.stats();
            let unheard = self.tell(outputs);
            if unheard.is_empty() {
                return;
            }
            unheard.into_iter().for_each(|id| self.engine.scheduler.cancel(id, outputs));
        }
    }

    /// Empties `outputs`; returns the sequences of requests whose sinks broke off.
    fn tell(&mut self, outputs: &mut Outputs) -> Vec<SequenceId> {
        let mut unheard = Vec::new();
        for (id, event) in outputs.drain(..) {
            let Some(of) = self.sequences.get_mut(&id) else { continue };
            if !std::mem::replace(&mut of.started, true) {
                self.shared.queued.fetch_sub(1, Ordering::SeqCst);
            }
            let (ticket, choice) = (of.ticket, of.choice);
            let is_last = matches!(event, Event::Done(_) | Event::Embedding(_) | Event::Failed(_));
            let Some(taken) = self.tickets.get_mut(&ticket) else { continue };
            if taken.sink.as_mut().is_some_and(|sink| sink(choice, event).is_break()) {
                taken.sink = None;
                unheard.extend_from_slice(&taken.sequences);
            }
            if is_last {
                self.sequences.remove(&id);
                taken.left -= 1;
                if taken.left == 0 {
                    self.tickets.remove(&ticket);
                }
            }
        }
        unheard
    }
}

#[cfg(test)]
mod tests;
