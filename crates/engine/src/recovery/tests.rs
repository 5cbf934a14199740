//! A Vulkan device that is lost in the middle of answers: the answers are those of an undisturbed one.

use std::{collections::HashMap, time::Duration};

use graph::RunError;

use super::*;
use crate::{Engine, Event, LoadOptions, ModelFile, Request};

/// The answers of three sequences; `losses` lists the steps before which the device is lost.
fn answers(device: &str, losses: &[usize]) -> (HashMap<u64, Vec<u32>>, u64, Vec<String>) {
    let injected = |engine: &mut Engine, step: usize| {
        if losses.contains(&step) {
            let error = RunError::Device(DeviceError::Lost { device: device.to_owned() });
            assert!(engine.scheduler.recover(&error), "before step {step}");
        }
    };
    answers_with(device, None, injected)
}

/// The same where `before` hears of every step.
fn answers_with(
    device: &str,
    submit_bound: Option<Duration>,
    before: impl Fn(&mut Engine, usize),
) -> (HashMap<u64, Vec<u32>>, u64, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = testkit::speaking("gemma3", folder.path()).unwrap();
    let options = LoadOptions {
        device: device.to_owned(),
        threads: Some(2),
        context: Some(96),
        sequences: 3,
        chunk: 16,
        outputs: 3,
        arithmetic: graph::Arithmetic::F32,
        kv: graph::KvType::F32,
        submit_bound,
        ..LoadOptions::default()
    };
    let mut engine = Engine::load(&ModelFile::open(&path).unwrap(), &options, &mut |_, _| ()).unwrap();
    let tokenizer = engine.model.tokenizer.clone().unwrap();
    for length in [5, 20, 40] {
        let prompt = (0..length).map(|i| (i * 37 + 11) % 320).collect();
        let request = Request { prompt, max_tokens: Some(12), ignore_end: true, ..Request::default() };
        engine.scheduler.submit(&request, 1, &tokenizer);
    }
    let (mut outputs, mut done, mut steps) = (Vec::new(), HashMap::new(), 0);
    while !engine.scheduler.is_idle() {
        before(&mut engine, steps);
        engine.scheduler.step(&mut outputs);
        steps += 1;
        for (id, event) in outputs.drain(..) {
            match event {
                Event::Done(generation) => assert!(done.insert(id.0, generation.ids).is_none()),
                Event::Failed(error) => panic!("{error}"),
                _ => (),
            }
        }
    }
    let used = engine.scheduler.execution.plan().used_devices().iter().map(|name| (*name).to_owned()).collect();
    (done, engine.scheduler.stats().recoveries, used)
}

#[test]
fn answers_go_on_after_a_loss() {
    if !matches!(crate::devices::vulkan_count(), Ok(1..)) {
        println!("skipped: no Vulkan device");
        return;
    }
    let (want, ..) = answers("vulkan:0", &[]);
    assert_eq!(want.len(), 3);
    // The fourth loss is one too many.
    for (losses, used) in [(&[6][..], "vulkan:0"), (&[2, 5, 9], "vulkan:0"), (&[2, 5, 9, 11], "cpu")] {
        let (got, recoveries, devices) = answers("vulkan:0", losses);
        assert_eq!(got, want, "{losses:?}");
        assert_eq!((recoveries, devices), (losses.len() as u64, vec![used.to_owned()]), "{losses:?}");
    }
}

#[test]
fn answers_go_on_after_a_loss_between_two_submits_of_a_step() {
    if !matches!(crate::devices::vulkan_count(), Ok(1..)) {
        println!("skipped: no Vulkan device");
        return;
    }
    let (want, ..) = answers("vulkan:0", &[]);
    let (got, recoveries, used) = answers_with("vulkan:0", Some(Duration::from_nanos(1)), |engine, step| {
        // The step has more submits than this, and what was opened anew is lost no more.
        let devices = lock(&engine.devices);
        if let (3, Some(vulkan)) = (step, devices.vulkan()) {
            vulkan.lose_after(5);
        }
    });
    assert_eq!(got, want);
    assert_eq!((recoveries, used), (1, vec!["vulkan:0".to_owned()]));
}
