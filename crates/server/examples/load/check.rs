//! Whether an answer is what it must be.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::cases::{Answers, FIXED, Facts, Form};

/// What an answer says, streamed or whole.
#[derive(Debug, Default)]
pub(crate) struct Said {
    choices: Vec<Choice>,
    usage: Value,
    /// When the first text came, of a stream.
    pub(crate) first: Option<Instant>,
    done: bool,
}

#[derive(Clone, Debug, Default)]
struct Choice {
    text: String,
    arguments: String,
    calls: usize,
    reason: Option<String>,
    logprobs: usize,
}

/// The first answers to the requests whose answers never differ.
#[derive(Debug, Default)]
pub(crate) struct Fixed([Mutex<Option<Vec<String>>>; FIXED]);

/// Reads the events of a stream as they come.
pub(crate) struct Events {
    said: Said,
    unread: Vec<u8>,
}

/// Something is wrong; the text says what.
pub(crate) type Checked<T = ()> = Result<T, String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

impl Events {
    pub(crate) fn new(choices: usize) -> Events {
        Events { said: Said::new(choices), unread: Vec::new() }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Checked {
        self.unread.extend(bytes);
        while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.unread.drain(..end + 2).collect();
            let event = String::from_utf8(event).map_err(|error| format!("{error} in a stream"))?;
            if event.starts_with(':') {
                continue;
            }
            let data = event.trim_end().strip_prefix("data: ").ok_or_else(|| format!("no data: {event:?}"))?;
            ensure(!self.said.done, || format!("{data} after the end"))?;
            if data == "[DONE]" {
                self.said.done = true;
                continue;
            }
            let data: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
            ensure(data.get("error").is_none(), || format!("a stream broke: {data}"))?;
            self.said.hear(&data, "delta")?;
        }
        Ok(())
    }

    pub(crate) fn end(self) -> Checked<Said> {
        ensure(self.unread.is_empty() && self.said.done, || "a stream without an end".to_owned())?;
        Ok(self.said)
    }
}

impl Said {
    fn new(choices: usize) -> Said {
        Said { choices: vec![Choice::default(); choices], ..Said::default() }
    }

    pub(crate) fn whole(body: &[u8], choices: usize) -> Checked<Said> {
        let body: Value = serde_json::from_slice(body).map_err(|error| format!("{error} in an answer"))?;
        let mut said = Said::new(choices);
        said.hear(&body, "message")?;
        Ok(said)
    }

    /// A whole answer or a piece of one; `inner` is where chats have the message.
    fn hear(&mut self, body: &Value, inner: &str) -> Checked {
        if body["usage"].is_object() {
            self.usage = body["usage"].clone();
        }
        for part in body["choices"].as_array().into_iter().flatten() {
            let index = part["index"].as_u64().unwrap_or(u64::MAX) as usize;
            let count = self.choices.len();
            let choice = self.choices.get_mut(index).ok_or_else(|| format!("choice {index} of {count}"))?;
            ensure(choice.reason.is_none(), || format!("choice {index} goes on after its end: {part}"))?;
            choice.hear(part, &part[inner]);
            if !choice.text.is_empty() || choice.calls > 0 {
                self.first.get_or_insert_with(Instant::now);
            }
        }
        Ok(())
    }

    pub(crate) fn completion_tokens(&self) -> u64 {
        self.usage["completion_tokens"].as_u64().unwrap_or(0)
    }

    /// Everything that must hold.
    pub(crate) fn check(&self, wanted: &Answers, facts: &Facts, fixed: &Fixed) -> Checked {
        self.check_usage(wanted, facts)?;
        for choice in &self.choices {
            choice.check(wanted)?;
        }
        wanted.fixed.map_or(Ok(()), |number| fixed.check(number, self))
    }

    fn check_usage(&self, wanted: &Answers, facts: &Facts) -> Checked {
        let usage = &self.usage;
        let count =
            |name: &str| usage[name].as_u64().map(|count| count as usize).ok_or_else(|| format!("usage {usage}"));
        let (prompt, completion, total) =
            (count("prompt_tokens")?, count("completion_tokens")?, count("total_tokens")?);
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(u64::MAX) as usize;
        ensure(prompt + completion == total, || format!("usage does not add up: {usage}"))?;
        ensure(cached <= prompt && prompt <= facts.context, || format!("usage of the prompt: {usage}"))?;
        let most = wanted.choices * wanted.most_tokens.min(facts.context + 1);
        ensure(completion <= most, || format!("{completion} tokens where {most} were asked for"))?;
        let known = wanted.prompt_tokens.unwrap_or(prompt);
        ensure(prompt == known, || format!("a prompt of {known} tokens is counted as {prompt}"))?;
        // An answer that ends with its first token has a token and no text.
        let listed: usize = self.choices.iter().map(|choice| choice.logprobs).sum();
        let shown = wanted.prompt_tokens.map_or(0, |prompt| prompt);
        ensure(!wanted.logprobs || listed <= shown + completion && listed >= shown, || {
            format!("probabilities of {listed} tokens of {shown} and {completion}")
        })
    }
}

impl Choice {
    fn hear(&mut self, part: &Value, message: &Value) {
        self.text += part["text"].as_str().or_else(|| message["content"].as_str()).unwrap_or_default();
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            self.calls += usize::from(call.get("id").is_some());
            self.arguments += call["function"]["arguments"].as_str().unwrap_or_default();
        }
        self.reason = part["finish_reason"].as_str().map(str::to_owned);
        let logprobs = &part["logprobs"];
        let list = logprobs["content"].as_array().or_else(|| logprobs["tokens"].as_array());
        self.logprobs += list.map_or(0, Vec::len);
    }

    fn check(&self, wanted: &Answers) -> Checked {
        let reason = self.reason.as_deref().ok_or("an answer without an end")?;
        let known = match wanted.form {
            Form::Call => ["tool_calls", "length"],
            _ => ["stop", "length"],
        };
        ensure(known.contains(&reason), || format!("finish_reason {reason}"))?;
        if reason == "length" {
            return Ok(());
        }
        let value = |text: &str| -> Checked<Value> {
            serde_json::from_str(text).map_err(|error| format!("{error} in what was to be JSON: {text:?}"))
        };
        match wanted.form {
            Form::Text => Ok(()),
            Form::Json => {
                let value = value(&self.text)?;
                let fits = value["ok"].is_boolean() && (1..=3).contains(&value["n"].as_i64().unwrap_or(0));
                ensure(fits, || format!("not as the schema says: {value}"))
            }
            Form::Call => {
                let value = value(&self.arguments)?;
                let fits = self.calls == 1 && (value["city"] == "Oslo" || value["city"] == "Rome");
                ensure(fits, || format!("not as the tool says: {} calls, {value}", self.calls))
            }
        }
    }
}

impl Fixed {
    fn check(&self, number: usize, said: &Said) -> Checked {
        let texts: Vec<String> = said.choices.iter().map(|choice| choice.text.clone()).collect();
        let mut first = self.0[number].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*first {
            None => {
                *first = Some(texts);
                Ok(())
            }
            Some(first) => ensure(*first == texts, || {
                format!("the answer to fixed request {number} was {first:?} and is {texts:?}")
            }),
        }
    }
}

/// Vectors of length 1, one for each text.
pub(crate) fn vectors(body: &[u8], texts: usize) -> Checked {
    let body: Value = serde_json::from_slice(body).map_err(|error| format!("{error} in vectors"))?;
    let data = body["data"].as_array().ok_or("no vectors")?;
    ensure(data.len() == texts, || format!("{} vectors of {texts} texts", data.len()))?;
    for item in data {
        let vector = item["embedding"].as_array().ok_or("no vector")?;
        let squares: f64 = vector.iter().filter_map(Value::as_f64).map(|x| x * x).sum();
        ensure((squares - 1.0).abs() < 1e-3, || format!("a vector of length {}", squares.sqrt()))?;
    }
    ensure(body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"], || format!("usage {}", body["usage"]))
}

/// An error in OpenAI's shape with this code.
pub(crate) fn refusal(body: &[u8], code: &str) -> Checked {
    let shown = || String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
    let value: Value = serde_json::from_slice(body).map_err(|error| format!("{error} in a refusal: {}", shown()))?;
    let error = &value["error"];
    let shaped = error["message"].is_string() && error["type"].is_string() && error.get("param").is_some();
    ensure(shaped && error["code"] == code, || format!("{code} was due: {}", shown()))
}

/// The wait that a busy server asks for.
pub(crate) fn retry_after(value: Option<&str>) -> Checked<Duration> {
    let seconds: u64 = value.and_then(|value| value.parse().ok()).ok_or("busy, and no Retry-After")?;
    ensure((1..=60).contains(&seconds), || format!("Retry-After {seconds}"))?;
    Ok(Duration::from_secs(seconds))
}
