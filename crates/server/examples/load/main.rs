//! A load test: many clients at once ask one server for all that it serves, and for much that it must refuse, leave in
//! the middle, and look at every answer.
//!
//! ```text
//! cargo run --release -p server --example load -- [--model PATH] [--clients 64] [--requests 10000] [--seconds N]
//!                                                 [--seed S] [--url http://127.0.0.1:PORT [--pid PID]]
//! ```
//!
//! Without `--url` it starts a server in its own process, with the speaking fixture or the model given, and few KV
//! blocks, so that they run out. What must hold:
//!
//! - Every request that is well-formed is answered, or refused as it must be; a 429 says when to come back, and the
//!   client does. Answers parse, keep to their format, and their usage adds up.
//! - Some requests come again and again, streamed and whole: their answers, first asked for with nothing beside them,
//!   never differ.
//! - At the end nothing runs, nothing waits, no KV block and no connection is held, and the process holds no more memory
//!   than after a tenth of the requests, or once the KV cache was full, up to [`MOST_GROWTH_MIB`].
//! - A server of this process stops without an error.
//!
//! It exits with 0 where all of that held, 1 where something did not, 2 where it could not be tried.

mod cases;
mod check;
mod client;
mod hostile;
mod http;
mod random;
mod tally;
mod target;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use client::World;
use tally::{Outcome, Tally};
use target::{Failure, Held, Target, settled};

/// What memory may grow by after a tenth of the requests, or once the KV cache was full. The bodies of requests are up to 4 MB, some are held at the
/// same time, by clients and server alike, and allocators do not give everything back.
const MOST_GROWTH_MIB: f64 = 48.0;

/// Where no number of requests, or no time is said.
const REQUESTS: usize = 10_000;
const SECONDS: u64 = 1800;

struct Options {
    model: Option<PathBuf>,
    clients: usize,
    requests: usize,
    seconds: u64,
    seed: u64,
    url: Option<String>,
    pid: Option<u32>,
}

fn options() -> Result<Options, Failure> {
    let (mut requests, mut seconds) = (None, None);
    let mut options =
        Options { model: None, clients: 64, requests: REQUESTS, seconds: SECONDS, seed: 1, url: None, pid: None };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or_else(|| format!("{name} has no value"))?;
        let wrong = |error: std::num::ParseIntError| format!("{name} {value}: {error}");
        match name.as_str() {
            "--model" => options.model = Some(value.into()),
            "--clients" => options.clients = value.parse().map_err(wrong)?,
            "--requests" => requests = Some(value.parse().map_err(wrong)?),
            "--seconds" => seconds = Some(value.parse().map_err(wrong)?),
            "--seed" => options.seed = value.parse().map_err(wrong)?,
            "--url" => options.url = Some(value),
            "--pid" => options.pid = Some(value.parse().map_err(wrong)?),
            _ => return Err(format!("{name} is no option").into()),
        }
    }
    // A time alone is the only bound.
    options.requests = requests.unwrap_or(if seconds.is_some() { usize::MAX } else { REQUESTS });
    options.seconds = seconds.unwrap_or(SECONDS);
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(run) {
        Ok(faults) if faults.is_empty() => {
            println!("all as it must be");
            ExitCode::SUCCESS
        }
        Ok(faults) => {
            faults.iter().for_each(|fault| println!("WRONG: {fault}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the test and prints what happened; returns what was wrong.
fn run(options: Options) -> Result<Vec<String>, Failure> {
    let target = match &options.url {
        Some(url) => Target::elsewhere(url, options.pid)?,
        None => Target::here(options.model.clone())?,
    };
    let facts = target.facts()?;
    println!(
        "{}: context {}, vocabulary {}; {} clients, seed {}",
        target.name, facts.context, facts.vocab, options.clients, options.seed
    );
    let start = Instant::now();
    let most_time = Duration::from_secs(options.seconds);
    let world = World::new(facts, target.patience(), options.requests, start + most_time);
    let mut tally = client::fix(&world, target.address);
    let tenths = clients(&world, &target, &options, &mut tally);
    let elapsed = start.elapsed();

    let mut faults: Vec<String> = tally.faults().to_vec();
    faults.extend(target.check_idle().err());
    let late = target.held();
    if tally.total(Outcome::Answered) == 0 {
        faults.push("nothing was answered".to_owned());
    }
    print!("{}", tally.table(elapsed));
    println!("{}", target.books()?);
    faults.extend(memory(&tenths, late));
    faults.extend(target.stop().err());
    Ok(faults)
}

/// Prints what was held after each tenth and at the end; returns what is wrong with it.
fn memory(tenths: &[Held], late: Option<Held>) -> Option<String> {
    let late = late?;
    let (first, all) = (tenths.first()?, [tenths, &[late]].concat());
    let settled = settled(&all)?.own_mib;
    let shown: Vec<String> = tenths.iter().map(|held| format!("{:.0}", held.own_mib)).collect();
    println!(
        "memory: {:.1} MiB after a tenth, {settled:.1} once the KV cache was full, {:.1} at the end, may grow by \
         {MOST_GROWTH_MIB}; by tenths: {}; with mapped files {:.1} and {:.1} MiB",
        first.own_mib,
        late.own_mib,
        shown.join(" "),
        first.resident_mib,
        late.resident_mib,
    );
    let growth = late.own_mib - settled;
    (growth > MOST_GROWTH_MIB).then(|| format!("memory grew by {growth:.1} MiB"))
}

/// Runs all clients to their ends; returns the memory held after each tenth of the work, where that can be known.
fn clients(world: &World, target: &Target, options: &Options, tally: &mut Tally) -> Vec<Held> {
    let mut tenths = Vec::new();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let seed = |client: usize| options.seed.wrapping_mul(0x9e37_79b9).wrapping_add(client as u64);
        let clients: Vec<_> = (0..options.clients)
            .map(|client| scope.spawn(move || client::work(world, target.address, seed(client))))
            .collect();
        while !clients.iter().all(|client| client.is_finished()) {
            let count = tenths.len() as u32 + 1;
            let by_count = world.ended() > (world.most / 10).saturating_mul(count as usize);
            if by_count || start.elapsed() > (world.until - start) / 10 * count {
                tenths.extend(target.held());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for client in clients {
            match client.join() {
                Ok(of_client) => tally.add(of_client),
                Err(_) => tally.fault("client", "a client panicked".to_owned()),
            }
        }
    });
    tenths
}
