//! Events on their way from the engine's thread to the connection that wants them.
//!
//! The engine must not wait for a client, so the buffer between them is not a channel that blocks: it grows to a bound,
//! and joins the pieces of text that pile up. Past the bound the client is taken for one that does not read, and its
//! answer is broken off.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard},
};

use engine::{Event, TokenLogprob};
use tokio::sync::Notify;

/// Events that may wait before pieces of text are joined.
const JOIN_BEYOND: usize = 64;

/// Bytes of an event apart from its text.
const EVENT_BYTES: usize = size_of::<Item>();

/// The connection's end.
pub(crate) struct Receiver(Arc<Feed>);

/// An engine's end, for the choices from `first` on. There may be several. That it is dropped is heard at the other end,
/// after all that was sent: an engine that breaks off without a last event is not waited for.
pub(crate) struct Sender {
    feed: Arc<Feed>,
    first: usize,
}

/// What comes out of a feed.
#[derive(Debug)]
pub(crate) enum Item {
    /// Something happened to a choice.
    Event(usize, Event),
    /// The sender for the choices from this one on is gone.
    Gone(usize),
}

struct Feed {
    queue: Mutex<Queue>,
    arrived: Notify,
}

struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    most_bytes: usize,
    overflowed: bool,
}

/// Too much piled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflowed;

impl Feed {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Sender {
    /// Passes an event of a choice on, counted from the sender's first. Does not wait. `Break` where the other end no
    /// longer takes any.
    pub(crate) fn send(&self, choice: usize, event: Event) -> ControlFlow<()> {
        let mut queue = self.feed.lock();
        queue.push(Item::Event(self.first + choice, event));
        let overflowed = queue.overflowed;
        drop(queue);
        self.feed.arrived.notify_one();
        if overflowed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.feed.lock().push(Item::Gone(self.first));
        self.feed.arrived.notify_one();
    }
}

impl Receiver {
    /// A feed in which at most about `most_bytes` wait.
    pub(crate) fn new(most_bytes: usize) -> Receiver {
        let queue = Queue { items: VecDeque::new(), bytes: 0, most_bytes, overflowed: false };
        Receiver(Arc::new(Feed { queue: Mutex::new(queue), arrived: Notify::new() }))
    }

    /// The other end, for the choices from `first` on.
    pub(crate) fn sender(&self, first: usize) -> Sender {
        Sender { feed: self.0.clone(), first }
    }

    /// What comes next.
    pub(crate) async fn next(&self) -> Result<Item, Overflowed> {
        loop {
            {
                let mut queue = self.0.lock();
                if queue.overflowed {
                    return Err(Overflowed);
                }
                if let Some(item) = queue.items.pop_front() {
                    queue.bytes -= bytes(&item);
                    return Ok(item);
                }
            }
            // A notice given between the look and the wait is kept.
            self.0.arrived.notified().await;
        }
    }
}

impl Queue {
    fn push(&mut self, item: Item) {
        if self.overflowed {
            return;
        }
        if self.items.len() >= JOIN_BEYOND
            && let Item::Event(choice, Event::Token { text, logprobs }) = &item
            && logprobs.is_empty()
            && let Some(waiting) = self.last_text(*choice)
        {
            waiting.push_str(text);
            self.bytes += text.len();
        } else {
            self.bytes += bytes(&item);
            self.items.push_back(item);
        }
        if self.bytes > self.most_bytes {
            self.overflowed = true;
            self.items = VecDeque::new();
        }
    }

    /// The text of the last event of a choice, where that is nothing but text. Choices take turns, so it lies near the
    /// end.
    fn last_text(&mut self, choice: usize) -> Option<&mut String> {
        let of_choice = |item: &&mut Item| matches!(item, Item::Event(of, _) if *of == choice);
        match self.items.iter_mut().rev().take(JOIN_BEYOND).find(of_choice) {
            Some(Item::Event(_, Event::Token { text, logprobs })) if logprobs.is_empty() => Some(text),
            _ => None,
        }
    }
}

/// About the bytes that an event takes. Those of a prompt come once, whatever the client does, and are not counted.
fn bytes(item: &Item) -> usize {
    let of_token = |token: &TokenLogprob| {
        token.bytes.len() + token.top.iter().map(|(_, bytes, _)| 40 + bytes.len()).sum::<usize>()
    };
    match item {
        Item::Event(_, Event::Token { text, logprobs }) => {
            EVENT_BYTES + text.len() + logprobs.iter().map(of_token).sum::<usize>()
        }
        _ => EVENT_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Event {
        Event::Token { text: text.to_owned(), logprobs: Vec::new() }
    }

    /// All texts, up to the end of the sender.
    async fn texts(receiver: &Receiver) -> Vec<(usize, String)> {
        let mut texts = Vec::new();
        loop {
            match receiver.next().await.unwrap() {
                Item::Event(choice, Event::Token { text, .. }) => texts.push((choice, text)),
                Item::Event(..) => {}
                Item::Gone(_) => return texts,
            }
        }
    }

    #[tokio::test]
    async fn events_come_in_order_and_then_the_end() {
        let receiver = Receiver::new(1 << 20);
        let sender = receiver.sender(10);
        assert!(sender.send(0, token("a")).is_continue());
        assert!(sender.send(1, token("b")).is_continue());
        drop(sender);
        assert_eq!(texts(&receiver).await, [(10, "a".to_owned()), (11, "b".to_owned())]);
    }

    #[tokio::test]
    async fn what_piles_up_is_joined_and_nothing_is_lost() {
        let receiver = Receiver::new(1 << 20);
        let sender = receiver.sender(0);
        for i in 0..10_000 {
            assert!(sender.send(i % 3, token("xy")).is_continue());
        }
        drop(sender);
        let got = texts(&receiver).await;
        assert!(got.len() <= JOIN_BEYOND + 3, "{}", got.len());
        for choice in 0..3 {
            let length: usize = got.iter().filter(|(of, _)| *of == choice).map(|(_, text)| text.len()).sum();
            assert_eq!(length, 2 * (10_000 / 3 + usize::from(choice == 0)));
        }
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_cut_off() {
        let receiver = Receiver::new(10_000);
        let sender = receiver.sender(0);
        let sent = (0..10_000).take_while(|_| sender.send(0, token("some text")).is_continue()).count();
        assert!((1..9_999).contains(&sent), "the engine is told after {sent}");
        assert_eq!(receiver.next().await.unwrap_err(), Overflowed);
        assert_eq!(receiver.0.lock().items.capacity(), 0, "the memory is given back");
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let receiver = Receiver::new(1 << 20);
        let sender = receiver.sender(3);
        let reader = tokio::spawn(async move { texts(&receiver).await });
        tokio::task::yield_now().await;
        assert!(sender.send(4, token("late")).is_continue());
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(reader.await.unwrap(), [(7, "late".to_owned())]);
    }
}
