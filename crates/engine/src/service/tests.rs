use super::*;
use crate::{LoadOptions, ModelFile};

#[test]
fn what_a_thread_that_is_gone_did_not_take_does_not_wait() {
    let dir = std::env::temp_dir().join(format!("engine-service-{}", std::process::id()));
    let file = ModelFile::open(&testkit::speaking("llama", &dir).unwrap()).unwrap();
    let engine = Engine::load(&file, &LoadOptions { threads: Some(1), ..LoadOptions::default() }, &mut |_, _| ());
    std::fs::remove_dir_all(&dir).unwrap();
    // As between the end of the thread and the word of it: nobody reads, and neither flag is set.
    let service = Service {
        shared: Arc::new(Shared {
            model: engine.unwrap().model,
            options: ServiceOptions::default(),
            commands: mpsc::channel().0,
            queued: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            stats: Mutex::new(Stats::default()),
            thread: Mutex::new(None),
        }),
    };
    let sink = || -> Sink { Box::new(|_, _| ControlFlow::Continue(())) };
    let request = || Request { prompt: vec![1], ..Request::default() };
    for refused in [
        service.submit(request(), 3, sink()),
        service.submit_more(request(), 2, sink()),
        service.embed(vec![1], Pooling::Mean, None, sink()),
    ] {
        assert!(matches!(refused, Err(SubmitError::Stopped)));
        assert_eq!(service.stats().waiting, 0);
    }
}
