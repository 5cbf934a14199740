//! The scheduler on a null device: it computes nothing, and remembers through its block tables which tokens a query
//! sees. Its logits are a function of those alone, so a wrong block, a lost one, or one that somebody else wrote gives
//! another answer than the same request alone.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use graph::{
    Arithmetic, Device, DeviceError, Exchange, Graph, GraphBuilder, KV_BLOCK_TOKENS, Memory, NodeId, PlanOptions,
    Program, Rates, Share, ValueId, Weight,
};
use rand_pcg::{
    Pcg64,
    rand_core::{Rng, SeedableRng},
};
use text::Vocab;

use super::*;
use crate::{Generation, SamplerOptions};

mod speculation;

const VOCAB: usize = 64;
const WINDOW: usize = 50;

/// See above.
struct Null {
    /// The step that fails, if any.
    fails_at: Option<u64>,
    /// Whether the device is lost then.
    is_lost: bool,
    /// The logits are nearly those of the last token alone, so that texts repeat themselves.
    repeats: bool,
}

struct NullProgram {
    windows: Vec<Option<usize>>,
    /// The token in each slot of each group.
    slots: Vec<Vec<Option<u32>>>,
    logits: ValueId,
    hidden: ValueId,
    width: usize,
    steps: u64,
    fails_at: Option<u64>,
    is_lost: bool,
    repeats: bool,
}

impl Device for Null {
    fn name(&self) -> &str {
        "null"
    }
    fn memory(&self) -> Memory {
        Memory { total_bytes: u64::MAX, available_bytes: u64::MAX }
    }
    fn rates(&self) -> Option<Rates> {
        None
    }
    fn supports(&self, _: &Graph, _: NodeId) -> Result<(), String> {
        Ok(())
    }
    fn weight_bytes(&self, _: &Graph, _: NodeId, _: &Weight, _: Arithmetic) -> u64 {
        0
    }
    fn working_bytes(&self, _: &Share<'_>) -> u64 {
        0
    }
    fn compile(&self, share: &Share<'_>, _: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        let hidden = share.graph.taps()[0].1;
        Ok(Box::new(NullProgram {
            windows: share.graph.windows().to_vec(),
            slots: share.kv.blocks.iter().map(|count| vec![None; count * KV_BLOCK_TOKENS]).collect(),
            logits: share.graph.logits(),
            hidden,
            width: share.graph.value(hidden).width,
            steps: 0,
            fails_at: self.fails_at,
            is_lost: self.is_lost,
            repeats: self.repeats,
        }))
    }
}

impl Program for NullProgram {
    fn run(&mut self, _: usize, step: &Step<'_>, exchange: &mut Exchange) -> Result<(), DeviceError> {
        self.steps += 1;
        if Some(self.steps) == self.fails_at && self.is_lost {
            return Err(DeviceError::Lost { device: "null".to_owned() });
        }
        if Some(self.steps) == self.fails_at {
            return Err(DeviceError::Failed { device: "null".to_owned(), detail: "as asked".to_owned() });
        }
        let mut output = 0;
        for span in step.spans {
            for (index, row) in span.rows.clone().enumerate() {
                let token = span.past + index;
                let mut hash = DefaultHasher::new();
                for (group, window) in self.windows.iter().enumerate() {
                    let slot = |t: usize| {
                        span.tables[group][t / KV_BLOCK_TOKENS] as usize * KV_BLOCK_TOKENS + t % KV_BLOCK_TOKENS
                    };
                    self.slots[group][slot(token)] = Some(step.ids[row]);
                    let first = window.map_or(0, |window| (token + 1).saturating_sub(window));
                    for t in first..=token {
                        self.slots[group][slot(t)].expect("a slot that was written").hash(&mut hash);
                    }
                }
                if step.outputs.contains(&(row as u32)) {
                    let state = hash.finish();
                    let mut rng = Pcg64::seed_from_u64(state);
                    let mut last = self.repeats.then(|| Pcg64::seed_from_u64(u64::from(step.ids[row])));
                    for logit in &mut exchange.get_mut(self.logits)[output * VOCAB..(output + 1) * VOCAB] {
                        *logit = (rng.next_u64() % 1000) as f32 / 100.0;
                        if let Some(last) = &mut last {
                            *logit = *logit / 100.0 + (last.next_u64() % 1000) as f32 / 100.0;
                        }
                    }
                    for x in &mut exchange.get_mut(self.hidden)[output * self.width..(output + 1) * self.width] {
                        *x = (rng.next_u64() % 1000) as f32;
                    }
                    output += 1;
                }
            }
        }
        Ok(())
    }

    fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<(), DeviceError> {
        let from = from as usize * KV_BLOCK_TOKENS;
        self.slots[group].copy_within(from..from + KV_BLOCK_TOKENS, to as usize * KV_BLOCK_TOKENS);
        Ok(())
    }
}

/// One layer that sees everything and one with a window.
fn graph() -> Graph {
    let mut b = GraphBuilder::new();
    let weight =
        |b: &mut GraphBuilder, rows: usize| b.weight(Weight::from_f32("w", rows, 4, &vec![0.0; rows * 4])).unwrap();
    let table = weight(&mut b, VOCAB);
    let mut x = b.embed(table, 1.0).unwrap();
    for window in [None, Some(WINDOW)] {
        let cache = b.cache(1, 4, window).unwrap();
        b.kv_write(cache, x, x).unwrap();
        x = b.attention(cache, x, 1.0, None).unwrap();
    }
    let x = b.select_outputs(x).unwrap();
    b.tap(models::HIDDEN, x);
    let head = weight(&mut b, VOCAB);
    let logits = b.linear(x, head, None).unwrap();
    b.finish(logits).unwrap()
}

#[derive(Clone, Copy)]
struct Setting {
    context: usize,
    slots: usize,
    chunk: usize,
    kv_bytes: Option<u64>,
    fails_at: Option<u64>,
    is_lost: bool,
    outputs: usize,
    repeats: bool,
    speculation: Speculation,
}

const ROOMY: Setting = Setting {
    context: 512,
    slots: 4,
    chunk: 32,
    kv_bytes: Some(1 << 30),
    fails_at: None,
    is_lost: false,
    outputs: 8,
    repeats: false,
    speculation: Speculation::Off,
};
/// Barely more than one full context.
const TIGHT: Setting = Setting { kv_bytes: Some(0), ..ROOMY };

fn execution(setting: Setting) -> Execution {
    let graph = Arc::new(graph());
    let device = Null { fails_at: setting.fails_at, is_lost: setting.is_lost, repeats: setting.repeats };
    let options = PlanOptions {
        context: Some(setting.context),
        model_context: setting.context,
        sequences: setting.slots,
        kv_bytes: setting.kv_bytes,
        step_tokens: setting.chunk,
        step_outputs: setting.outputs,
        ..PlanOptions::default()
    };
    let devices: [&dyn Device; 1] = [&device];
    let plan = graph::plan(&graph, &devices, &options).unwrap();
    plan.compile(graph, &devices, &mut |_, _| ()).unwrap()
}

fn scheduler(setting: Setting) -> Scheduler {
    let mut scheduler = Scheduler::new(execution(setting), Duration::from_secs(1));
    scheduler.set_speculation(setting.speculation);
    // As many drafts as there is room for, however long steps take.
    scheduler.worth = Worth::of_free_rows();
    scheduler
}

fn tokenizer() -> Arc<Tokenizer> {
    let names: Vec<String> = (0..VOCAB).map(|i| format!("<{i}>")).collect();
    let mut vocab = Vocab::spm(names.iter().map(String::as_str).collect(), vec![0.0; VOCAB]);
    vocab.eos = Some(0);
    Arc::new(Tokenizer::from_vocab(vocab).unwrap())
}

fn request(prompt: Vec<u32>, max_tokens: usize, seed: u64) -> Request {
    let sampler = SamplerOptions { temperature: 1.0, frequency_penalty: 0.5, seed, ..SamplerOptions::default() };
    Request { prompt, max_tokens: Some(max_tokens), sampler, ..Request::default() }
}

fn prompt(len: usize, salt: u64) -> Vec<u32> {
    let mut rng = Pcg64::seed_from_u64(salt);
    (0..len).map(|_| (rng.next_u64() % VOCAB as u64) as u32).collect()
}

/// Runs to the end; what each sequence ended with.
fn finish(scheduler: &mut Scheduler, done: &mut HashMap<SequenceId, Result<Generation, EngineError>>) {
    let mut outputs = Vec::new();
    let mut steps = 0;
    while !scheduler.is_idle() {
        scheduler.step(&mut outputs);
        collect(&mut outputs, done);
        steps += 1;
        assert!(steps < 100_000, "the schedule does not end");
    }
}

fn collect(outputs: &mut Outputs, done: &mut HashMap<SequenceId, Result<Generation, EngineError>>) {
    for (id, event) in outputs.drain(..) {
        match event {
            Event::Done(generation) => assert!(done.insert(id, Ok(generation)).is_none(), "ends once"),
            Event::Failed(error) => assert!(done.insert(id, Err(error)).is_none(), "ends once"),
            _ => assert!(!done.contains_key(&id), "nothing comes after the end"),
        }
    }
}

/// The answer of a request that has an engine to itself.
fn alone(request: &Request) -> Vec<u32> {
    let mut scheduler = scheduler(ROOMY);
    let mut done = HashMap::new();
    scheduler.submit(request, 1, &tokenizer());
    finish(&mut scheduler, &mut done);
    done.into_values().next().unwrap().unwrap().ids
}

fn no_block_leaked(scheduler: &mut Scheduler) {
    let stats = scheduler.stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
    scheduler.blocks.forget();
    assert_eq!(scheduler.blocks.usage().free, stats.kv_blocks);
}

#[test]
fn answers_do_not_depend_on_company_or_memory() {
    for setting in [ROOMY, TIGHT, Setting { chunk: 7, ..TIGHT }, Setting { slots: 8, ..TIGHT }] {
        let mut scheduler = scheduler(setting);
        let requests: Vec<Request> = (0..12u64)
            .map(|i| {
                request(prompt([1, 31, 32, 33, 64, 100, 200][i as usize % 7], i % 5), 20 + 20 * (i as usize % 8), i)
            })
            .collect();
        let ids: Vec<SequenceId> = requests.iter().map(|r| scheduler.submit(r, 1, &tokenizer())[0]).collect();
        let mut done = HashMap::new();
        finish(&mut scheduler, &mut done);
        for (request, id) in requests.iter().zip(&ids) {
            assert_eq!(done[id].as_ref().unwrap().ids, alone(request), "prompt of {}", request.prompt.len());
        }
        if setting.kv_bytes == Some(0) {
            assert!(scheduler.stats().preemptions > 0, "this setting is meant to preempt");
        }
        no_block_leaked(&mut scheduler);
    }
}

#[test]
fn random_loads_with_cancellations_leak_nothing_and_answer_all() {
    for seed in 0..6 {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut below = |n: usize| (rng.next_u64() % n as u64) as usize;
        let setting =
            Setting { slots: 1 + below(6), chunk: 1 + below(64), ..if seed % 2 == 0 { TIGHT } else { ROOMY } };
        let mut scheduler = scheduler(setting);
        let (mut asked, mut done, mut cancelled) = (Vec::new(), HashMap::new(), Vec::new());
        let mut outputs = Vec::new();
        for _ in 0..600 {
            if below(8) == 0 {
                let request = request(prompt(1 + below(120), below(4) as u64), 1 + below(60), below(1000) as u64);
                let choices = 1 + below(3);
                let ids = scheduler.submit(&request, choices, &tokenizer());
                asked.push((request, ids));
            }
            if below(20) == 0 && !asked.is_empty() {
                let id = asked[below(asked.len())].1[0];
                scheduler.cancel(id, &mut outputs);
                cancelled.push(id);
            }
            scheduler.step(&mut outputs);
            collect(&mut outputs, &mut done);
        }
        finish(&mut scheduler, &mut done);
        for (request, ids) in &asked {
            for (choice, id) in ids.iter().enumerate() {
                let generation = done[id].as_ref().unwrap();
                let mut request = request.clone();
                request.sampler.seed += choice as u64;
                let want = alone(&request);
                if cancelled.contains(id) {
                    assert!(want.starts_with(&generation.ids), "a beginning of the same answer");
                } else {
                    assert_eq!(generation.ids, want);
                }
            }
        }
        no_block_leaked(&mut scheduler);
    }
}

#[test]
fn the_next_turn_computes_only_itself() {
    let mut scheduler = scheduler(ROOMY);
    let mut history = prompt(90, 1);
    for turn in 0..5 {
        let id = scheduler.submit(&request(history.clone(), 20, turn), 1, &tokenizer())[0];
        let mut done = HashMap::new();
        finish(&mut scheduler, &mut done);
        let generation = done.remove(&id).unwrap().unwrap();
        // The last token of an answer is never fed; everything before it is known.
        let new = generation.metrics.prompt_tokens - generation.metrics.cached_tokens;
        assert_eq!(new, if turn == 0 { 90 } else { 1 + 17 }, "turn {turn}");
        history.extend(generation.ids);
        history.extend(prompt(17, 100 + turn));
    }
}

#[test]
fn choices_share_the_prompt() {
    let mut scheduler = scheduler(ROOMY);
    let request = request(prompt(300, 1), 10, 5);
    let ids = scheduler.submit(&request, 3, &tokenizer());
    let mut done = HashMap::new();
    finish(&mut scheduler, &mut done);
    let cached: Vec<usize> = ids.iter().map(|id| done[id].as_ref().unwrap().metrics.cached_tokens).collect();
    assert_eq!(cached[0], 0);
    assert!(cached[1] >= 288 && cached[2] >= 288, "{cached:?}");
    let answers: Vec<_> = ids.iter().map(|id| &done[id].as_ref().unwrap().ids).collect();
    assert_ne!(answers[0], answers[1]);
}

#[test]
fn a_long_prompt_does_not_stall_a_short_one() {
    let mut scheduler = scheduler(Setting { chunk: 16, ..ROOMY });
    let long = scheduler.submit(&request(prompt(400, 1), 5, 0), 1, &tokenizer())[0];
    let short = scheduler.submit(&request(prompt(10, 2), 5, 0), 1, &tokenizer())[0];
    let mut order = Vec::new();
    let mut outputs = Vec::new();
    while !scheduler.is_idle() {
        scheduler.step(&mut outputs);
        order.extend(outputs.drain(..).filter(|(_, event)| matches!(event, Event::Done(_))).map(|(id, _)| id));
    }
    assert_eq!(order, [short, long]);
}

#[test]
fn scores_of_a_prompt_come_whole_and_once() {
    let mut scheduler = scheduler(ROOMY);
    let mut scored = request(prompt(70, 1), 0, 0);
    scored.prompt_logprobs = Some(2);
    scored.max_tokens = Some(0);
    // A neighbour that decodes meanwhile, and the same again with the prompt in the cache.
    scheduler.submit(&request(prompt(5, 2), 30, 0), 1, &tokenizer());
    let mut got = Vec::new();
    for _ in 0..2 {
        let id = scheduler.submit(&scored, 1, &tokenizer())[0];
        let mut outputs = Vec::new();
        while !scheduler.is_idle() {
            scheduler.step(&mut outputs);
            for (of, event) in outputs.drain(..) {
                if let (true, Event::Prompt(scores)) = (of == id, event) {
                    got.push(scores);
                }
            }
        }
    }
    assert_eq!(got.len(), 2);
    assert_eq!(got[0].iter().map(|score| score.id).collect::<Vec<_>>(), scored.prompt[1..]);
    assert_eq!(got[0], got[1]);
    assert!(got[0].iter().all(|score| score.top.len() == 2 && score.logprob <= 0.0));
}

#[test]
fn scores_of_a_prompt_are_told_to_the_first_of_its_choices() {
    let mut scheduler = scheduler(ROOMY);
    let scored = Request { prompt_logprobs: Some(0), ..request(prompt(20, 1), 2, 0) };
    let ids = scheduler.submit(&scored, 3, &tokenizer());
    let (mut outputs, mut heard) = (Vec::new(), Vec::new());
    while !scheduler.is_idle() {
        scheduler.step(&mut outputs);
        for (id, event) in outputs.drain(..) {
            match event {
                Event::Prompt(scores) => heard.push((id, scores.len())),
                Event::Token { .. } => assert_eq!(heard, [(ids[0], 19)], "before any token"),
                _ => (),
            }
        }
    }
    assert_eq!(heard, [(ids[0], 19)]);
}

#[test]
fn a_failing_device_ends_its_step_and_nothing_else() {
    let mut scheduler = scheduler(Setting { fails_at: Some(8), ..ROOMY });
    let before = scheduler.submit(&request(prompt(40, 1), 60, 0), 1, &tokenizer())[0];
    let mut done = HashMap::new();
    finish(&mut scheduler, &mut done);
    assert!(matches!(done[&before], Err(EngineError::Run(_))));
    let again = request(prompt(40, 1), 60, 0);
    let after = scheduler.submit(&again, 1, &tokenizer())[0];
    finish(&mut scheduler, &mut done);
    assert_eq!(done[&after].as_ref().unwrap().ids, alone(&again));
    no_block_leaked(&mut scheduler);
}

#[test]
fn a_lost_device_is_a_pause() {
    // Lost once, and again after every few steps.
    for (setting, again) in [(ROOMY, None), (TIGHT, None), (ROOMY, Some(11)), (Setting { chunk: 7, ..TIGHT }, Some(40))]
    {
        for first in [1, 2, 9, 30] {
            let lossy = move |at| Setting { fails_at: at, is_lost: true, ..setting };
            let mut scheduler = scheduler(lossy(Some(first)));
            let mut left = 5;
            scheduler.set_recovery(Box::new(move |_| {
                left -= 1;
                Ok(execution(lossy(again.filter(|_| left > 0))))
            }));
            let requests: Vec<Request> = (0..6).map(|i| request(prompt(20 + 15 * i as usize, i % 2), 30, i)).collect();
            let ids: Vec<SequenceId> = requests.iter().map(|r| scheduler.submit(r, 1, &tokenizer())[0]).collect();
            let mut done = HashMap::new();
            finish(&mut scheduler, &mut done);
            for (request, id) in requests.iter().zip(&ids) {
                assert_eq!(done[id].as_ref().unwrap().ids, alone(request), "lost at {first}, then {again:?}");
            }
            assert_eq!(scheduler.stats().recoveries, if again.is_some() { 5 } else { 1 });
            no_block_leaked(&mut scheduler);
        }
    }
}

#[test]
fn a_device_that_stays_lost_ends_what_runs() {
    let mut scheduler = scheduler(Setting { fails_at: Some(3), is_lost: true, ..ROOMY });
    scheduler.set_recovery(Box::new(|error| Err(EngineError::Failed(error.clone()))));
    let mut done = HashMap::new();
    for _ in 0..2 {
        let id = scheduler.submit(&request(prompt(40, 1), 60, 0), 1, &tokenizer())[0];
        finish(&mut scheduler, &mut done);
        assert!(matches!(done[&id], Err(EngineError::Run(RunError::Device(DeviceError::Lost { .. })))));
    }
}

#[test]
fn an_end_token_flushes_what_was_held_and_is_a_token_of_a_completion() {
    // Until the end token comes up; every text ends in what could begin the stop string.
    let mut ended = 0;
    for seed in 0..40 {
        for chat in [false, true] {
            let mut scheduler = scheduler(ROOMY);
            let mut request = Request { chat, logprobs: Some(1), ..request(prompt(20, seed), 300, seed) };
            request.stop = vec!["><never".to_owned(), ">".repeat(9)];
            request.sampler.frequency_penalty = 0.0;
            scheduler.submit(&request, 1, &tokenizer());
            let (mut outputs, mut text, mut scores) = (Vec::new(), String::new(), 0);
            while !scheduler.is_idle() {
                scheduler.step(&mut outputs);
                for (_, event) in outputs.drain(..) {
                    match event {
                        Event::Token { text: piece, logprobs } => {
                            text += &piece;
                            scores += logprobs.len();
                        }
                        Event::Done(generation) if generation.finish == FinishReason::Stop => {
                            ended += 1;
                            assert_eq!(generation.ids.last(), Some(&0), "token 0 is the end");
                            assert!(generation.text.ends_with('>') || generation.ids.len() == 1);
                            assert_eq!(generation.text, text);
                            assert_eq!(scores, generation.ids.len() - usize::from(chat));
                        }
                        _ => (),
                    }
                }
            }
        }
    }
    assert!(ended > 10, "the end token came up {ended} times");
}

#[test]
fn deadlines_end_what_waits_and_what_runs() {
    let mut scheduler = scheduler(Setting { slots: 1, ..ROOMY });
    let late = || Request { deadline: Some(Instant::now()), ..request(prompt(5, 1), 400, 0) };
    let ids = [scheduler.submit(&late(), 1, &tokenizer())[0], scheduler.submit(&late(), 1, &tokenizer())[0]];
    let mut done = HashMap::new();
    finish(&mut scheduler, &mut done);
    assert!(ids.iter().all(|id| done[id].as_ref().unwrap().finish == FinishReason::Deadline));
}

#[test]
fn embeddings_do_not_depend_on_how_they_are_cut() {
    let embed = |setting: Setting, pooling| {
        let mut scheduler = scheduler(setting);
        scheduler.submit(&request(prompt(5, 2), 30, 0), 1, &tokenizer());
        scheduler.submit_embedding(prompt(61, 3), pooling, None);
        let mut outputs = Vec::new();
        let mut vector = Vec::new();
        while !scheduler.is_idle() {
            scheduler.step(&mut outputs);
            for (_, event) in outputs.drain(..) {
                if let Event::Embedding(embedding) = event {
                    vector = embedding;
                }
            }
        }
        vector
    };
    for pooling in [Pooling::Mean, Pooling::Last] {
        let vector = embed(ROOMY, pooling);
        assert_eq!(vector.len(), 4);
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!(vector, embed(Setting { chunk: 5, ..TIGHT }, pooling));
    }
}
