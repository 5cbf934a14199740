//! What is drafted changes no answer: neither its text nor its probabilities nor its end, in any company.

use std::{ops::ControlFlow, path::Path};

use super::*;
use crate::{Engine, Format, Grammar, LoadOptions, ModelFile, TokenLogprob, Vocabulary};

const DRAFTING: Setting =
    Setting { speculation: Speculation::Ngram, repeats: true, outputs: 24, context: 300, ..ROOMY };

/// All that is told of a sequence.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    prompt: Vec<TokenLogprob>,
    /// The reason, or the error.
    end: String,
    drafted: usize,
    accepted: usize,
}

impl Told {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Prompt(scores) => self.prompt.extend(scores),
            Event::Token { text, logprobs } => {
                self.text += &text;
                self.logprobs.extend(logprobs);
            }
            Event::Done(generation) => {
                assert_eq!(generation.text, self.text);
                self.end = format!("{:?}", generation.finish);
                let metrics = generation.metrics;
                assert_eq!(metrics.generated_tokens, generation.ids.len());
                (self.ids, self.drafted, self.accepted) = (generation.ids, metrics.drafted, metrics.accepted);
            }
            Event::Failed(error) => self.end = error.to_string(),
            Event::Prefill { .. } | Event::Embedding(_) => (),
        }
    }

    /// The same without what drafts change.
    fn answer(self) -> Told {
        Told { drafted: 0, accepted: 0, ..self }
    }
}

type AllTold = HashMap<SequenceId, Told>;

fn hear(outputs: &mut Outputs, told: &mut AllTold) {
    outputs.drain(..).for_each(|(id, event)| told.entry(id).or_default().hear(event));
}

fn listen(scheduler: &mut Scheduler, told: &mut AllTold) {
    let mut outputs = Vec::new();
    while !scheduler.is_idle() {
        scheduler.step(&mut outputs);
        hear(&mut outputs, told);
    }
}

/// What is told of a request that has an engine to itself, which drafts nothing.
fn undrafted(request: &Request) -> Told {
    let mut scheduler = scheduler(Setting { speculation: Speculation::Off, ..DRAFTING });
    let mut told = HashMap::new();
    let id = scheduler.submit(request, 1, &tokenizer())[0];
    listen(&mut scheduler, &mut told);
    assert_eq!(scheduler.stats().drafted_tokens, 0);
    told.remove(&id).unwrap()
}

/// Random requests.
struct Random {
    rng: Pcg64,
    grammars: Vec<Grammar>,
}

impl Random {
    fn new(seed: u64) -> Random {
        let vocabulary = Vocabulary::new(tokenizer());
        let grammars = ["(<[1-9]>(<2[0-9]>)?){1,40}", "(<1><2><3>|<4>|<5><6>)*<7>"];
        let compile = |regex: &str| Grammar::compile(&vocabulary, &Format::Regex(regex.to_owned())).unwrap();
        Random { rng: Pcg64::seed_from_u64(seed), grammars: grammars.into_iter().map(compile).collect() }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.rng.next_u64() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn request(&mut self) -> Request {
        let mut ids = prompt(1 + self.below(100), self.rng.next_u64() % 4);
        // Some say a thing twice.
        if self.one_in(2) {
            ids.extend_from_within(self.rng.next_u64() as usize % ids.len()..);
        }
        let bias = |random: &mut Random| (random.below(VOCAB) as u32, random.below(9) as f32 - 4.0);
        let mut logit_bias: Vec<(u32, f32)> = (0..self.below(3)).map(|_| bias(self)).collect();
        logit_bias.dedup_by_key(|(id, _)| *id);
        let sampler = SamplerOptions {
            temperature: [0.0, 0.3, 1.0][self.below(3)],
            top_k: [0, 5][self.below(2)],
            top_p: [1.0, 0.9][self.below(2)],
            repetition_penalty: [1.0, 1.0, 1.1][self.below(3)],
            frequency_penalty: [0.0, 0.0, 0.2][self.below(3)],
            presence_penalty: [0.0, 0.3][self.below(2)],
            logit_bias,
            seed: self.rng.next_u64(),
            ..SamplerOptions::default()
        };
        let stop = match self.below(3) {
            0 => vec![format!("<{}><", self.below(VOCAB)), format!("{}><1", self.below(9))],
            _ => Vec::new(),
        };
        Request {
            prompt: ids,
            chat: self.one_in(2),
            // Without a bound to the end of the context.
            max_tokens: if self.one_in(8) { None } else { Some(self.below(150)) },
            sampler,
            stop,
            ignore_end: self.one_in(2),
            logprobs: [None, Some(0), Some(2)][self.below(3)],
            prompt_logprobs: self.one_in(6).then_some(1),
            grammar: self.one_in(4).then(|| self.grammars[self.rng.next_u64() as usize % 2].clone()),
            deadline: None,
        }
    }
}

#[test]
fn what_is_drafted_changes_no_answer() {
    let (mut drafted, mut accepted, mut preemptions, mut ends) = (0, 0, 0, HashMap::new());
    for seed in 0..8 {
        let mut random = Random::new(seed);
        let memory = if random.one_in(2) { TIGHT.kv_bytes } else { ROOMY.kv_bytes };
        let (slots, chunk) = (1 + random.below(5), 5 + random.below(60));
        // From none to spare to more than all can use.
        let outputs = slots + [0, 1, 4, 20, 90][random.below(5)];
        let mut scheduler = scheduler(Setting { slots, chunk, outputs, kv_bytes: memory, ..DRAFTING });
        let (mut told, mut asked) = (HashMap::new(), Vec::new());
        let mut outputs = Vec::new();
        for _ in 0..200 {
            if random.one_in(10) {
                let request = random.request();
                let id = scheduler.submit(&request, 1, &tokenizer())[0];
                asked.push((request, id, false));
            }
            if random.one_in(60) && !asked.is_empty() {
                let at = random.below(asked.len());
                // One that has ended cannot be cancelled.
                asked[at].2 = true;
                scheduler.cancel(asked[at].1, &mut outputs);
            }
            scheduler.step(&mut outputs);
            hear(&mut outputs, &mut told);
        }
        listen(&mut scheduler, &mut told);
        // And the next turns of some, which take up what the first left.
        for turn in 0..asked.len().min(6) {
            let (mut request, id, _) = asked[turn].clone();
            request.prompt.extend(&told[&id].ids);
            request.prompt.extend(prompt(random.below(20), 7));
            request.prompt.truncate(DRAFTING.context);
            let id = scheduler.submit(&request, 1, &tokenizer())[0];
            asked.push((request, id, false));
        }
        listen(&mut scheduler, &mut told);
        for (request, id, cancelled) in asked {
            let (got, want) = (told.remove(&id).unwrap(), undrafted(&request));
            drafted += got.drafted;
            accepted += got.accepted;
            *ends.entry(got.end.clone()).or_insert(0) += 1;
            if cancelled && got.end == "Cancelled" {
                assert!(want.ids.starts_with(&got.ids), "seed {seed}: {request:?}");
            } else {
                assert_eq!(got.answer(), want, "seed {seed}: {request:?}");
            }
        }
        preemptions += scheduler.stats().preemptions;
        no_block_leaked(&mut scheduler);
    }
    assert!(drafted > 1000 && accepted > 300 && accepted < drafted, "{accepted} of {drafted}");
    assert!(preemptions > 0);
    assert!(["Stop", "Length", "Context", "Cancelled"].iter().all(|end| ends[*end] > 0), "{ends:?}");
}

#[test]
fn drafts_save_steps_and_are_counted() {
    let repeating = Request { ignore_end: true, ..request(prompt(40, 1), 200, 0) };
    let request = Request { sampler: SamplerOptions::default(), ..repeating };
    let mut scheduler = scheduler(DRAFTING);
    let id = scheduler.submit(&request, 1, &tokenizer())[0];
    let mut told = HashMap::new();
    listen(&mut scheduler, &mut told);
    let (stats, got) = (scheduler.stats(), &told[&id]);
    assert_eq!((stats.drafted_tokens, stats.accepted_tokens), (got.drafted as u64, got.accepted as u64));
    assert_eq!(stats.generated_tokens, 200);
    // A prompt of two chunks; then every step gives a token and those that were accepted.
    assert_eq!(stats.steps, 1 + 200 - stats.accepted_tokens);
    assert_eq!(stats.step_rows, 40 + (stats.steps - 2) + stats.drafted_tokens);
    assert!(stats.accepted_tokens > 100, "{stats:?}");
}

#[test]
fn drafts_take_no_block_from_anyone() {
    // Four texts that repeat themselves, in barely more than one context.
    let mut scheduler = scheduler(Setting { kv_bytes: TIGHT.kv_bytes, outputs: 64, ..DRAFTING });
    for salt in 0..4 {
        let request = Request { ignore_end: true, ..request(prompt(20, salt), 270, 0) };
        scheduler.submit(&Request { sampler: SamplerOptions::default(), ..request }, 1, &tokenizer());
    }
    let mut outputs = Vec::new();
    while !scheduler.is_idle() {
        let (before, preemptions) = (scheduler.stats(), scheduler.stats().preemptions);
        scheduler.step(&mut outputs);
        for sequence in &scheduler.running {
            let room = sequence.lease.as_ref().unwrap().room();
            assert!(room < sequence.computed + KV_BLOCK_TOKENS, "{room} for {} tokens", sequence.computed);
        }
        if scheduler.stats().preemptions > preemptions {
            // Then every sequence that ran wanted more than was there for its own row.
            assert!(before.running > 1);
        }
    }
    assert!(scheduler.stats().accepted_tokens > 200);
    no_block_leaked(&mut scheduler);
}

fn fixture(name: &str, speculation: Speculation) -> Engine {
    let dir = std::env::temp_dir().join(format!("engine-speculation-{name}-{speculation:?}-{}", std::process::id()));
    let options = LoadOptions { threads: Some(2), sequences: 3, chunk: 40, speculation, ..LoadOptions::default() };
    let engine = load(&dir, name, &options);
    std::fs::remove_dir_all(&dir).unwrap();
    engine
}

fn load(dir: &Path, name: &str, options: &LoadOptions) -> Engine {
    let file = ModelFile::open(&testkit::speaking(name, dir).unwrap()).unwrap();
    Engine::load(&file, options, &mut |_, _| ()).unwrap()
}

#[test]
fn models_answer_alike_with_and_without_drafts() {
    for name in ["gemma3", "qwen2", "mistral"] {
        let mut plain = fixture(name, Speculation::Off);
        let mut drafting = fixture(name, Speculation::Ngram);
        drafting.scheduler.worth = Worth::of_free_rows();
        let tokenizer = drafting.tokenizer().unwrap().clone();
        let requests: Vec<Request> = (0..9u64)
            .map(|index| {
                let word = |i: u64| ((i % (5 + index)) * 37 % 320) as u32;
                let temperature = [0.0, 0.0, 0.5][index as usize % 3];
                // Three words, of which some come again as they came before.
                let logit_bias = vec![(40, 50.0), (41, 50.0), (index as u32, 50.0)];
                let sampler = SamplerOptions { temperature, seed: index, logit_bias, ..SamplerOptions::default() };
                let prompt = (0..[3, 40, 90][index as usize / 3]).map(word).collect();
                Request {
                    prompt,
                    max_tokens: Some(80),
                    ignore_end: true,
                    sampler,
                    logprobs: Some(2),
                    ..Request::default()
                }
            })
            .collect();
        let ids: Vec<SequenceId> =
            requests.iter().map(|request| drafting.scheduler.submit(request, 1, &tokenizer)[0]).collect();
        let mut told = HashMap::new();
        listen(&mut drafting.scheduler, &mut told);
        let stats = drafting.scheduler.stats();
        assert!(stats.accepted_tokens > 50 && stats.drafted_tokens > stats.accepted_tokens, "{name}: {stats:?}");
        for (request, id) in requests.iter().zip(ids) {
            let mut want = Told::default();
            let generation = plain.generate(request, &mut |event| {
                want.hear(event);
                ControlFlow::Continue(())
            });
            want.hear(Event::Done(generation.unwrap()));
            assert_eq!(told.remove(&id).unwrap().answer(), want, "{name}: {request:?}");
        }
        no_block_leaked(&mut drafting.scheduler);
        drafting.set_speculation(Speculation::Off);
        drafting.generate(&requests[0], &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(drafting.scheduler.stats().drafted_tokens, stats.drafted_tokens);
    }
}
