//! Tokens a second that clients get together from one service: `batch_rate MODEL CLIENTS TOKENS [PROMPT_TOKENS]`.
//!
//! Every client sends a prompt of its own and generates greedily past the end. The time runs from the first token of
//! the last client to the last token of all, so that only decoding is measured, with every client in every step.

use std::{
    error::Error,
    ops::ControlFlow,
    sync::mpsc,
    time::{Duration, Instant},
};

use engine::{Engine, Event, LoadOptions, ModelFile, Request, Service, ServiceOptions, Speculation};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("a model file")?;
    let numbers: Vec<usize> = args.map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let &[clients, tokens, ref rest @ ..] = &numbers[..] else {
        return Err("MODEL CLIENTS TOKENS [PROMPT_TOKENS]".into());
    };
    let prompt_tokens = rest.first().copied().unwrap_or(16);
    let file = ModelFile::open(model.as_ref())?;
    let options = LoadOptions {
        context: Some((prompt_tokens + tokens + 1).next_multiple_of(256)),
        sequences: clients,
        // One token a sequence and step: what is timed is the batch.
        speculation: Speculation::Off,
        outputs: clients,
        ..LoadOptions::default()
    };
    let engine = Engine::load(&file, &options, &mut |_, _| ())?;
    let service = Service::start(engine, ServiceOptions { gap: Duration::from_secs(10), ..ServiceOptions::default() })?;
    let (sender, receiver) = mpsc::channel();
    let mut tickets = Vec::new();
    for client in 0..clients {
        let prompt = (0..prompt_tokens).map(|i| (1000 + 7 * i + 131 * client) as u32).collect();
        let request = Request { prompt, max_tokens: Some(tokens), ignore_end: true, ..Request::default() };
        let sender = sender.clone();
        let sink = Box::new(move |_, event| {
            // The receiver outlives every request.
            let _ =
                sender.send((Instant::now(), matches!(event, Event::Token { .. }), matches!(event, Event::Done(_))));
            ControlFlow::Continue(())
        });
        tickets.push(service.submit(request, 1, sink)?);
    }
    let (mut times, mut done) = (Vec::new(), 0);
    while done < clients {
        let (at, is_token, is_done) = receiver.recv()?;
        done += usize::from(is_done);
        times.extend(is_token.then_some(at));
    }
    // By then every client has its first token.
    let from = times[clients - 1];
    let seconds = (times[times.len() - 1] - from).as_secs_f64();
    println!("{clients} clients: {:.1} tok/s together", (times.len() - clients) as f64 / seconds);
    service.stop(Duration::ZERO);
    Ok(())
}
