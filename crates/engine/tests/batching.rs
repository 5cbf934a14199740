//! Many sequences on the CPU device: each gets the answer it gets alone, whatever else is in its steps, wherever its
//! prompt is cut, and whether its beginning was in the cache.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use engine::{
    Engine, EngineError, Event, FinishReason, Generation, KvMemory, LoadOptions, ModelFile, Pooling, Request,
    SamplerOptions, Service, ServiceOptions, Sink, SubmitError, Ticket,
};

fn options(slots: usize, chunk: usize, kv_memory: KvMemory) -> LoadOptions {
    LoadOptions {
        threads: Some(2),
        sequences: slots,
        outputs: slots.max(4),
        chunk,
        kv_memory,
        ..LoadOptions::default()
    }
}

fn load(name: &str, options: &LoadOptions) -> Engine {
    // One folder for each call: tests run at the same time.
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("batching-{}-{call}", std::process::id()));
    let file = ModelFile::open(&testkit::speaking(name, &dir).unwrap()).unwrap();
    let engine = Engine::load(&file, options, &mut |_, _| ()).unwrap();
    // The weights stay mapped.
    std::fs::remove_dir_all(&dir).unwrap();
    engine
}

fn request(index: u64) -> Request {
    let len = [1, 3, 31, 32, 33, 70, 150][index as usize % 7];
    // Some share their beginning.
    let prompt = (0..len).map(|i| ((i * 37 + index % 3 * 11) % 320) as u32).collect();
    let temperature = if index.is_multiple_of(3) { 0.0 } else { 0.9 };
    let sampler = SamplerOptions { temperature, seed: index, ..SamplerOptions::default() };
    Request { prompt, max_tokens: Some(40), ignore_end: true, sampler, ..Request::default() }
}

fn submit(service: &Service, request: Request) -> (mpsc::Receiver<Event>, Ticket) {
    let (sender, receiver) = mpsc::channel();
    (receiver, service.submit(request, 1, sink_to(sender)).unwrap())
}

fn sink_to(sender: mpsc::Sender<Event>) -> Sink {
    Box::new(move |_, event| match sender.send(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    })
}

fn answer(events: &mpsc::Receiver<Event>) -> Generation {
    loop {
        match events.recv().expect("the service ends every sequence with an event") {
            Event::Done(generation) => return generation,
            Event::Failed(error) => panic!("{error}"),
            _ => (),
        }
    }
}

#[test]
fn answers_do_not_depend_on_company() {
    for name in ["gemma3", "qwen2", "mistral"] {
        let mut single = load(name, &options(1, 512, KvMemory::Contexts));
        let requests: Vec<Request> = (0..14).map(request).collect();
        let mut alone = Vec::new();
        for request in &requests {
            alone.push(single.generate(request, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().ids);
            // No help from the cache.
            single.forget();
        }
        for (slots, chunk, memory) in [(8, 64, KvMemory::Bytes(1 << 26)), (3, 17, KvMemory::Bytes(1))] {
            let service =
                Service::start(load(name, &options(slots, chunk, memory)), ServiceOptions::default()).unwrap();
            let submitted: Vec<_> = requests.iter().map(|request| submit(&service, request.clone())).collect();
            for (index, (events, _ticket)) in submitted.iter().enumerate() {
                assert_eq!(answer(events).ids, alone[index], "{name}, request {index} with {slots} slots");
            }
            service.stop(Duration::ZERO);
            let stats = service.stats();
            assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
            if memory != KvMemory::Bytes(1) {
                assert!(stats.cached_tokens > 0, "some prompts begin alike");
            }
        }
    }
}

#[test]
fn a_dropped_ticket_ends_its_request() {
    let service =
        Service::start(load("llama", &options(2, 64, KvMemory::Contexts)), ServiceOptions::default()).unwrap();
    let (events, ticket) = submit(&service, Request { max_tokens: None, ..request(3) });
    drop(ticket);
    assert_eq!(answer(&events).finish, FinishReason::Cancelled);
    assert!(events.recv().is_err(), "nothing after the end");
    service.stop(Duration::from_secs(10));
    assert_eq!(service.stats().kv_blocks_used, 0);
}

#[test]
fn what_cannot_be_queued_is_refused() {
    let options = options(1, 64, KvMemory::Contexts);
    let service =
        Service::start(load("llama", &options), ServiceOptions { queue: 2, ..ServiceOptions::default() }).unwrap();
    let sink = || -> Sink { Box::new(|_, _| ControlFlow::Continue(())) };
    let refused = |request, choices| service.submit(request, choices, sink()).err().expect("is refused").to_string();
    assert!(refused(Request::default(), 1).contains("empty"));
    let context = service.context();
    assert!(refused(Request { prompt: vec![1; context + 1], ..Request::default() }, 1).contains(&context.to_string()));
    assert!(refused(Request { prompt: vec![9_999_999], ..Request::default() }, 1).contains("9999999"));
    assert!(refused(Request { stop: vec![String::new()], ..request(0) }, 1).contains("stop"));
    assert!(refused(request(0), 4).contains("4 answers to one prompt, and 3 fit"));
    assert!(matches!(service.embed(vec![], Pooling::Mean, None, sink()), Err(SubmitError::Refused(_))));
    service.stop(Duration::ZERO);
    assert!(matches!(service.submit(request(0), 1, sink()), Err(SubmitError::Stopped)));
}

#[test]
fn stopping_waits_for_what_runs() {
    let service =
        Service::start(load("llama", &options(2, 64, KvMemory::Contexts)), ServiceOptions::default()).unwrap();
    let (events, _ticket) = submit(&service, request(2));
    service.stop(Duration::from_secs(60));
    assert_eq!(answer(&events).finish, FinishReason::Length);
}

#[test]
fn probabilities_of_a_prompt_are_those_of_its_perplexity() {
    let mut engine = load("qwen3", &LoadOptions { outputs: 64, chunk: 64, ..options(1, 64, KvMemory::Contexts) });
    let ids: Vec<u32> = (0..120).map(|i| (i * 53 + 7) % 320).collect();
    let logits = engine.logits(&ids).unwrap();
    let mut scores = Vec::new();
    let mut scored =
        Request { prompt: ids.clone(), max_tokens: Some(1), prompt_logprobs: Some(3), ..Request::default() };
    scored.logprobs = Some(2);
    let generation = engine
        .generate(&scored, &mut |event| {
            if let Event::Prompt(prompt) = event {
                scores = prompt;
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((generation.finish, generation.ids.len()), (FinishReason::Length, 1));
    assert_eq!(scores.len(), ids.len() - 1);
    for (row, score) in scores.iter().enumerate() {
        let logits = &logits.values[row * logits.vocab..(row + 1) * logits.vocab];
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
        let want = f64::from(logits[ids[row + 1] as usize] - largest) - sum.ln();
        assert!((f64::from(score.logprob) - want).abs() < 1e-5, "row {row}: {} and {want}", score.logprob);
        assert_eq!(score.top.len(), 3);
        assert!(score.top[0].2 >= score.top[1].2 && score.top[1].2 >= score.top[2].2);
    }
}

#[test]
fn a_deadline_ends_an_answer() {
    let mut engine = load("llama", &options(1, 64, KvMemory::Contexts));
    let late = Request { deadline: Some(Instant::now() + Duration::from_millis(30)), max_tokens: None, ..request(1) };
    let generation = engine.generate(&late, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert!(matches!(generation.finish, FinishReason::Deadline | FinishReason::Context), "{:?}", generation.finish);
}

/// One sequence at a time, and none that waits.
fn narrow() -> Service {
    let options = ServiceOptions { queue: 0, ..ServiceOptions::default() };
    Service::start(load("llama", &self::options(1, 64, KvMemory::Contexts)), options).unwrap()
}

fn endless() -> Request {
    Request { max_tokens: None, ..request(1) }
}

#[test]
fn a_sink_that_breaks_off_ends_its_request_and_hears_no_more() {
    for choices in [1, 2] {
        let service =
            Service::start(load("llama", &options(2, 64, KvMemory::Contexts)), ServiceOptions::default()).unwrap();
        let (sender, events) = mpsc::channel();
        let sink = Box::new(move |_, event| {
            let is_token = matches!(event, Event::Token { .. });
            sender.send(event).unwrap();
            if is_token { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let _ticket = service.submit(endless(), choices, sink).unwrap();
        // To the point at which the sink is dropped.
        let heard: Vec<Event> = events.iter().collect();
        assert!(matches!(heard.last(), Some(Event::Token { .. })), "{heard:?}");
        // Another request finds all of the engine free.
        let (events, _other) = submit(&service, Request { max_tokens: Some(3), ..request(2) });
        assert_eq!(answer(&events).finish, FinishReason::Length);
        let stats = service.stats();
        assert_eq!((stats.running, stats.waiting, stats.generated_tokens), (0, 0, 1 + 3), "{choices} choices");
        service.stop(Duration::ZERO);
        assert_eq!(service.stats().kv_blocks_used, 0);
    }
}

#[test]
fn a_request_under_way_may_add_prompts_to_a_full_queue_and_while_the_service_stops() {
    let service = narrow();
    let (sender, events) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let sink = Box::new(move |_, event| {
        // Holds the engine at its first token.
        if matches!(event, Event::Token { .. }) {
            let _ = gate.recv();
        }
        sender.send(event).unwrap();
        ControlFlow::Continue(())
    });
    let _first = service.submit(request(1), 1, sink).unwrap();
    // It has left the queue, and holds the only slot.
    while service.stats().running == 0 {
        std::thread::yield_now();
    }
    let (sender, second) = mpsc::channel();
    let refused = service.submit(request(2), 1, sink_to(sender.clone()));
    assert!(matches!(refused, Err(SubmitError::QueueFull { .. })));
    let _second = service.submit_more(request(2), 1, sink_to(sender)).unwrap();
    assert_eq!(service.stats().waiting, 1);

    let stopping = std::thread::spawn({
        let service = service.clone();
        move || service.stop(Duration::from_secs(600))
    });
    let (sender, third) = mpsc::channel();
    while !matches!(service.submit(request(3), 1, sink_to(sender.clone())), Err(SubmitError::Stopped)) {
        std::thread::yield_now();
    }
    assert!(service.is_alive());
    let _third = service.submit_more(request(3), 1, sink_to(sender.clone())).unwrap();
    let refused = service.submit_more(Request::default(), 1, sink_to(sender.clone()));
    assert!(matches!(refused, Err(SubmitError::Refused(_))));
    drop(open);
    for events in [events, second, third] {
        assert_eq!(answer(&events).finish, FinishReason::Length);
    }
    stopping.join().unwrap();
    assert!(!service.is_alive());
    assert!(matches!(service.submit_more(request(3), 1, sink_to(sender)), Err(SubmitError::Stopped)));
    let stats = service.stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
}

#[test]
fn a_prompt_added_when_the_last_one_ends_is_run_by_a_stopping_service() {
    let service = narrow();
    let (sender, events) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let (tickets, added) = mpsc::channel();
    let more = service.clone();
    let sink = Box::new(move |_, event| {
        if matches!(event, Event::Done(_)) {
            let _ = gate.recv();
            tickets.send(more.submit_more(request(2), 1, sink_to(sender.clone())).unwrap()).unwrap();
        }
        ControlFlow::Continue(())
    });
    let _first = service.submit(request(1), 1, sink).unwrap();
    let stopping = std::thread::spawn({
        let service = service.clone();
        move || service.stop(Duration::from_secs(600))
    });
    let nobody = || -> Sink { Box::new(|_, _| ControlFlow::Break(())) };
    while !matches!(service.submit(request(3), 1, nobody()), Err(SubmitError::Stopped)) {
        std::thread::yield_now();
    }
    drop(open);
    let _ticket = added.recv().unwrap();
    assert_eq!(answer(&events).finish, FinishReason::Length);
    stopping.join().unwrap();
}

#[test]
fn an_embedding_that_is_late_fails() {
    let service = narrow();
    for (deadline, is_late) in [(None, false), (Some(Instant::now()), true)] {
        let (sender, events) = mpsc::channel();
        let _ticket = service.embed(vec![1, 2, 3], Pooling::Mean, deadline, sink_to(sender)).unwrap();
        let last = events.iter().last().unwrap();
        match last {
            Event::Embedding(_) => assert!(!is_late),
            Event::Failed(error) => {
                assert!(is_late && matches!(error, EngineError::Deadline), "{error}");
                assert!(!error.is_misuse());
            }
            _ => panic!("{last:?} is no end"),
        }
    }
    service.stop(Duration::ZERO);
}

#[test]
fn a_service_whose_thread_panicked_says_so() {
    let service = narrow();
    assert!(service.is_alive());
    let (sender, events) = mpsc::channel::<Event>();
    let sink = Box::new(move |_, _| {
        let _held = &sender;
        panic!("as the test asks");
    });
    let _ticket = service.submit(endless(), 1, sink).unwrap();
    // Until the sink is dropped.
    assert!(events.recv().is_err());
    assert!(!service.is_alive());
    let sink = || -> Sink { Box::new(|_, _| ControlFlow::Continue(())) };
    for refused in [
        service.submit(request(1), 1, sink()),
        service.submit_more(request(1), 1, sink()),
        service.embed(vec![1], Pooling::Last, None, sink()),
    ] {
        assert!(matches!(refused, Err(SubmitError::Stopped)));
    }
    assert_eq!(service.stats().waiting, 0);
    service.stop(Duration::from_secs(600));
}
