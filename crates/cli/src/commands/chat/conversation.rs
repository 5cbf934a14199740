//! Messages, and the sequence that holds them in the KV cache.

use std::{fmt::Write, path::Path};

use engine::{Engine, EngineError, FinishReason, Generation, Metrics, Request, SamplerOptions};
use serde_json::{Map, Value, json};

use crate::{
    answer::{Shown, answer, drafted, short_footer},
    exit::message,
    interrupt::Answering,
    output::{Output, bytes, gb_per_s, note, note_dim, one_line, percent_of},
};

/// A conversation with a model.
pub(super) struct Conversation {
    engine: Engine,
    /// Tokens of the conversation, up to the last answer.
    len: usize,
    messages: Vec<Value>,
    sampler: SamplerOptions,
    max_tokens: Option<usize>,
    stop: Vec<String>,
    /// Measured after the first answer, and from then on known.
    roof: Option<f64>,
    /// Largest resident memory before the bandwidth was measured, which takes a buffer of its own.
    peak: Option<u64>,
    last: Option<Metrics>,
    answers: usize,
}

impl Conversation {
    /// A conversation without a message.
    ///
    /// # Errors
    /// Where a sampling setting is out of its range.
    pub(super) fn new(
        engine: Engine,
        sampler: SamplerOptions,
        max_tokens: Option<usize>,
        stop: Vec<String>,
    ) -> anyhow::Result<Conversation> {
        sampler.check(engine.info().vocab)?;
        Ok(Conversation {
            engine,
            len: 0,
            messages: Vec::new(),
            sampler,
            max_tokens,
            stop,
            roof: None,
            peak: None,
            last: None,
            answers: 0,
        })
    }

    /// Sends a message and shows the answer. A message that the model cannot take is refused, and the conversation
    /// stands as it was.
    ///
    /// # Errors
    /// Where a device fails or stdout is gone.
    pub(super) fn say(&mut self, text: &str) -> anyhow::Result<()> {
        // From here to the footer Ctrl-C stops the answer: a long history takes its time before the first token.
        let watch = Answering::begin();
        self.messages.push(json!({"role": "user", "content": text}));
        match self.answer(&watch) {
            Ok(generation) if generation.ids.is_empty() => {
                self.messages.pop();
                note("no token was generated: the message was dropped, and the conversation stands as it was");
                Ok(())
            }
            Ok(generation) => {
                self.messages.push(json!({"role": "assistant", "content": generation.text}));
                self.report(&generation);
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                self.refuse(error)
            }
        }
    }

    fn answer(&mut self, watch: &Answering) -> anyhow::Result<Generation> {
        let prompt = self.engine.rendered(&self.engine.render(&self.messages, None, &Map::new())?)?;
        // Another draw for every answer, and the same ones for the same seed.
        let seed = self.sampler.seed.wrapping_add(self.answers as u64);
        let request = Request {
            prompt,
            chat: true,
            max_tokens: self.max_tokens,
            sampler: SamplerOptions { seed, ..self.sampler.clone() },
            stop: self.stop.clone(),
            ..Request::default()
        };
        self.answers += 1;
        answer(&mut self.engine, &request, watch, Shown { text: true, progress: true })
    }

    /// Says why a message was not answered; passes on what no other message would change.
    fn refuse(&self, error: anyhow::Error) -> anyhow::Result<()> {
        match error.downcast_ref::<EngineError>() {
            Some(EngineError::PromptTooLong { prompt, context, .. }) => note(format_args!(
                "error: with this message the conversation has {prompt} tokens, and the context holds {context}: \
                 /clear begins anew, /save FILE keeps it first, --ctx makes more room at the start"
            )),
            Some(EngineError::Text(_)) => note(format_args!("error: {}", message(&error))),
            _ => return Err(error),
        }
        Ok(())
    }

    fn report(&mut self, generation: &Generation) {
        self.len = generation.metrics.prompt_tokens + generation.ids.len();
        self.peak = self.peak.or(generation.metrics.peak_memory_bytes);
        let roof = *self.roof.get_or_insert_with(|| self.engine.measure_bandwidth().unwrap_or(0.0));
        let metrics = Metrics { read_bytes_per_s: (roof > 0.0).then_some(roof), ..generation.metrics };
        note_dim(&short_footer(&metrics, generation.finish, self.len, self.engine.context()));
        if generation.finish == FinishReason::Context {
            note(format_args!(
                "the context of {} tokens is full, and the answer was cut there: /clear begins anew, /save FILE keeps \
                 the conversation, --ctx makes more room at the start",
                self.engine.context()
            ));
        }
        self.last = Some(metrics);
    }

    /// Replaces the system message.
    ///
    /// # Errors
    /// Where the model's template takes none.
    pub(super) fn set_system(&mut self, text: &str) -> anyhow::Result<()> {
        let system = json!({"role": "system", "content": text});
        // Asked of the template now, not when the next message meets it.
        self.engine.render(&[system.clone(), json!({"role": "user", "content": ""})], None, &Map::new())?;
        self.drop_system();
        self.messages.insert(0, system);
        Ok(())
    }

    fn drop_system(&mut self) -> Option<Value> {
        let first = self.messages.first()?;
        (first["role"] == "system").then(|| self.messages.remove(0))
    }

    /// The system message.
    pub(super) fn system(&self) -> Option<&str> {
        let first = self.messages.first().filter(|message| message["role"] == "system")?;
        first["content"].as_str()
    }

    /// Forgets everything but the system message.
    pub(super) fn clear(&mut self) {
        self.messages = self.drop_system().into_iter().collect();
        self.engine.forget();
        self.len = 0;
        self.last = None;
    }

    /// Writes the messages as JSON; returns how many.
    ///
    /// # Errors
    /// What the file system reports.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<usize> {
        Output::create(path)?.finish_json(&self.messages)?;
        Ok(self.messages.len())
    }

    /// Where the conversation stands.
    pub(super) fn stats(&self) -> String {
        let (info, plan) = (self.engine.info(), self.engine.plan());
        let mut out = format!("model    {} ({})", one_line(&info.name), one_line(&info.architecture));
        // Writing to a String cannot fail.
        for device in &plan.bytes {
            let _ = write!(
                out,
                "\ndevice   {}: {} of weights, {} of KV cache",
                device.device,
                bytes(device.weights_total() + device.mapped + device.looked_up),
                bytes(device.kv)
            );
        }
        let _ = write!(
            out,
            "\ncontext  {} of {} tokens, {} messages",
            self.len,
            self.engine.context(),
            self.messages.len()
        );
        let _ = write!(
            out,
            "\nsampling temperature {}, top-p {}, seed {}",
            self.sampler.temperature, self.sampler.top_p, self.sampler.seed
        );
        let Some(last) = &self.last else { return out };
        let _ = write!(
            out,
            "\nprefill  {} tokens, {} of them cached, {:.1} tok/s; first token after {:.2} s",
            last.prompt_tokens, last.cached_tokens, last.prefill_tok_per_s, last.time_to_first_token_s
        );
        let share =
            last.percent_of_bandwidth().map(|percent| format!(" = {}", percent_of(percent, "what memory delivers")));
        let _ = write!(
            out,
            "\ndecode   {} tokens{}, {:.1} tok/s, {} a token, {}{}",
            last.generated_tokens,
            drafted(last),
            last.decode_tok_per_s,
            bytes(last.bytes_per_token as u64),
            gb_per_s(last.decode_bytes_per_s),
            share.unwrap_or_default()
        );
        if let Some(peak) = self.peak {
            let _ = write!(out, "\nmemory   {} at most, up to the first answer", bytes(peak));
        }
        out
    }
}
