//! A client: one request after the other, each looked at.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cases::{self, Answers, Case, Facts, Manner, Wanted},
    check::{self, Checked, Events, Fixed, Said},
    hostile::{self, Patience},
    http::{Client, Incoming, Reply, Wire},
    random::Random,
    tally::{Outcome, Tally},
};

/// Of a hundred requests, those that must be refused, and those that are hardly requests.
const REFUSED_PERCENT: usize = 14;
const RUDE_PERCENT: usize = 3;

/// How often a request is tried that finds the server busy.
const MOST_TRIES: usize = 20;

/// For a whole answer. Longer is an answer that does not come.
pub(crate) const MOST_WAIT: Duration = Duration::from_secs(300);

/// What all clients share.
pub(crate) struct World {
    pub(crate) facts: Facts,
    pub(crate) patience: Patience,
    pub(crate) fixed: Fixed,
    /// Requests that are to be made.
    pub(crate) most: usize,
    /// None is begun later.
    pub(crate) until: Instant,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

/// What came of one try.
enum Tried {
    Ended(Outcome),
    /// Too much at once: wait so long.
    Busy(Duration),
}

impl World {
    pub(crate) fn new(facts: Facts, patience: Patience, most: usize, until: Instant) -> World {
        let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        World { facts, patience, fixed: Fixed::default(), most, until, begun, ended }
    }

    /// Requests that have ended.
    pub(crate) fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until && self.begun.fetch_add(1, Ordering::Relaxed) < self.most
    }
}

/// Makes requests until there were enough.
pub(crate) fn work(world: &World, address: SocketAddr, seed: u64) -> Tally {
    let mut random = Random::new(seed);
    let mut client = Client::new(address, MOST_WAIT);
    let mut tally = Tally::default();
    while world.goes_on() {
        match random.below(100) {
            0..RUDE_PERCENT => rude(world, &mut random, &client, &mut tally),
            at if at < RUDE_PERCENT + REFUSED_PERCENT => {
                serve(world, &mut client, &hostile::refused(&mut random, &world.facts), &mut tally);
            }
            _ => serve(world, &mut client, &cases::any(&mut random, &world.facts), &mut tally),
        }
        world.ended.fetch_add(1, Ordering::Relaxed);
    }
    tally
}

/// Asks the requests whose answers never differ, one at a time, for others to be compared with.
pub(crate) fn fix(world: &World, address: SocketAddr) -> Tally {
    let mut client = Client::new(address, MOST_WAIT);
    let mut tally = Tally::default();
    for number in 0..cases::FIXED {
        serve(world, &mut client, &cases::fixed(number, false, &world.facts), &mut tally);
    }
    tally
}

fn rude(world: &World, random: &mut Random, client: &Client, tally: &mut Tally) {
    const KIND: &str = "rude";
    match hostile::rude(random, client, world.patience) {
        Ok(Ok(())) => tally.count(KIND, Outcome::Refused),
        Ok(Err(what)) => tally.fault(KIND, what),
        Err(error) => tally.fault(KIND, error.to_string()),
    }
}

/// A request, tried until the server is not too busy for it.
fn serve(world: &World, client: &mut Client, case: &Case, tally: &mut Tally) {
    for _ in 0..MOST_TRIES {
        match attempt(world, client, case, tally) {
            Ok(Tried::Ended(outcome)) => return tally.count(case.kind, outcome),
            Ok(Tried::Busy(wait)) => {
                tally.retries += 1;
                std::thread::sleep(wait);
            }
            Err(what) => {
                let body = String::from_utf8_lossy(&case.wire.body[..case.wire.body.len().min(200)]).into_owned();
                return tally.fault(case.kind, format!("{what}; asked: {} {body}", case.wire.path));
            }
        }
    }
    tally.count(case.kind, Outcome::Busy);
}

fn attempt(world: &World, client: &mut Client, case: &Case, tally: &mut Tally) -> Checked<Tried> {
    let start = Instant::now();
    if let Manner::LeavesUnread(ms) = case.manner {
        let stream = client.send(&case.wire).map_err(|error| error.to_string())?;
        std::thread::sleep(Duration::from_millis(ms));
        drop(stream);
        return Ok(Tried::Ended(Outcome::Left));
    }
    let incoming = client.open(&case.wire).map_err(|error| error.to_string())?;
    if let (200, Manner::LeavesAfter(pieces)) = (incoming.status, case.manner) {
        return leave(incoming, pieces);
    }
    if let (200, Wanted::Answers(wanted @ Answers { streamed: true, .. })) = (incoming.status, &case.wanted) {
        let said = stream(client, incoming, wanted, case.manner)?;
        said.check(wanted, &world.facts, &world.fixed)?;
        tally.answered(said.first.map(|first| first - start), start.elapsed(), said.completion_tokens());
        return Ok(Tried::Ended(Outcome::Answered));
    }
    let reply = client.finish(incoming).map_err(|error| error.to_string())?;
    let tried = judge(world, client, case, &reply)?;
    if let (Tried::Ended(Outcome::Answered), Wanted::Answers(wanted)) = (&tried, &case.wanted) {
        let said = Said::whole(&reply.body, wanted.choices)?;
        said.check(wanted, &world.facts, &world.fixed)?;
        tally.answered(None, start.elapsed(), said.completion_tokens());
    }
    Ok(tried)
}

/// Reads so many pieces and goes.
fn leave(mut incoming: Incoming, pieces: usize) -> Checked<Tried> {
    for _ in 0..pieces {
        if incoming.next().map_err(|error| error.to_string())?.is_none() {
            break;
        }
    }
    Ok(Tried::Ended(Outcome::Left))
}

fn stream(client: &mut Client, mut incoming: Incoming, wanted: &Answers, manner: Manner) -> Checked<Said> {
    let mut events = Events::new(wanted.choices);
    while let Some(bytes) = incoming.next().map_err(|error| error.to_string())? {
        events.push(&bytes)?;
        if let Manner::Slowly(ms) = manner {
            std::thread::sleep(Duration::from_millis(ms));
        }
    }
    // Nothing is left of it but the connection.
    client.finish(incoming).map_err(|error| error.to_string())?;
    events.end()
}

/// What an answer that is not a stream comes to; the content of answers is left to the caller.
fn judge(world: &World, client: &mut Client, case: &Case, reply: &Reply) -> Checked<Tried> {
    let is_busy = reply.status == 429 || reply.status == 503 && check::refusal(&reply.body, "bodies_full").is_ok();
    if is_busy {
        return check::retry_after(reply.header("retry-after")).map(Tried::Busy);
    }
    let outcome = match (&case.wanted, reply.status) {
        (Wanted::Refusal(status, code), got) if *status == got => {
            check::refusal(&reply.body, code)?;
            Outcome::Refused
        }
        (Wanted::Answers(_), 200) => Outcome::Answered,
        (Wanted::Answers(wanted), 400) if wanted.perhaps_too_long => {
            check::refusal(&reply.body, "context_length_exceeded")?;
            Outcome::Refused
        }
        (Wanted::Vectors(texts), 200) => {
            check::vectors(&reply.body, *texts)?;
            Outcome::Answered
        }
        (Wanted::Ids(text), 200) => {
            back(world, client, text, &reply.body)?;
            Outcome::Answered
        }
        (_, status) => {
            let body = String::from_utf8_lossy(&reply.body[..reply.body.len().min(300)]).into_owned();
            return Err(format!("status {status}: {body}"));
        }
    };
    Ok(Tried::Ended(outcome))
}

/// The ids give the text again.
fn back(world: &World, client: &mut Client, text: &str, body: &[u8]) -> Checked {
    let parsed = |body: &[u8]| serde_json::from_slice::<Value>(body).map_err(|error| error.to_string());
    let tokens = parsed(body)?["tokens"].clone();
    let inside = |id: &Value| id.as_u64().is_some_and(|id| id < world.facts.vocab as u64);
    if !tokens.as_array().is_some_and(|ids| ids.iter().all(inside)) {
        return Err(format!("no ids: {tokens}"));
    }
    let wire = Wire::post("/detokenize", json!({"tokens": tokens}).to_string());
    let reply = client.ask(&wire).map_err(|error| error.to_string())?;
    let again = parsed(&reply.body)?["content"].clone();
    if again == text { Ok(()) } else { Err(format!("{text:?} became {again}")) }
}
