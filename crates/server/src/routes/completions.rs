//! `/v1/completions`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use engine::{Request, TokenLogprob, Tokenizer};

use super::{FINGERPRINT, chat::Head, completions_stream::CompletionStream};
use crate::{
    body::Payload,
    dialogue::{check_length, check_sampler},
    error::ApiError,
    ids::{new_id, unix_s},
    observe::Tracker,
    options::Limits,
    running::{Job, Piece, Running},
    sse,
    state::{App, Model},
    told::Told,
    types::{
        chat::finite,
        completions::{Completion, CompletionChoice, CompletionLogprobs, CompletionReply, CompletionRequest, Prompt},
        error::ErrorReply,
        usage::Costs,
    },
};

/// Texts, gone on with. With `echo`, `logprobs` and `max_tokens` 0 or 1 it scores texts, as evaluation harnesses do.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest, responses(
    (status = 200, content((CompletionReply = "application/json"), (CompletionReply = "text/event-stream"))),
    (status = "4XX", body = ErrorReply), (status = "5XX", body = ErrorReply)))]
pub(crate) async fn complete(
    State(app): State<App>,
    Extension(tracker): Extension<Tracker>,
    Payload(request, share): Payload<CompletionRequest>,
) -> Result<Response, ApiError> {
    let model = app.model(request.model.as_deref())?;
    let prepare = {
        let (model, app) = (model.clone(), app.clone());
        move || {
            let completion = request.parse(&app.options)?;
            let (stream, include_usage) = (completion.stream, completion.include_usage);
            let ignored = completion.ignored.clone();
            let (job, echoes) = prepare(&model, completion, &app.options.limits)?;
            drop(share);
            Ok((job, echoes, stream, include_usage, ignored))
        }
    };
    let (job, echoes, stream, include_usage, ignored) = app.aside(prepare).await??;
    let costs = Costs::new(&model.device, ignored);
    let running = Running::start(&app, &model, &tracker, job)?;
    let head = Head { id: new_id("cmpl-"), created: unix_s(), model: app.options.model.clone() };
    if stream {
        let tell = CompletionStream::new(head, &running, costs, include_usage, echoes);
        return Ok(sse::response(Told::new(running, tracker, tell), app.options.timeouts.keep_alive));
    }
    Ok(Json(whole(head, running, costs, &echoes).await?).into_response())
}

/// Bytes that the answers of a request may show of its prompts, about.
const MOST_ECHOED_BYTES: usize = 512 << 20;

/// Bytes that a token takes in a list, about.
const LISTED_BYTES: usize = 100;

/// What the answers show of their prompts and tokens.
pub(crate) struct Echoes {
    tokenizer: Option<Arc<Tokenizer>>,
    with_logprobs: bool,
    /// Texts and first tokens of the prompts, where they are shown.
    prompts: Vec<(String, u32)>,
}

impl Echoes {
    /// The text that answer `index` begins with.
    pub(crate) fn text(&self, index: usize, choices: usize) -> &str {
        self.prompts.get(index / choices).map_or("", |(text, _)| text)
    }

    /// Where the tokens of an answer are listed from.
    pub(crate) fn lister(&self, index: usize, choices: usize) -> Option<Lister<'_>> {
        self.with_logprobs
            .then(|| Lister { echoes: self, first: self.prompts.get(index / choices).map(|(_, first)| *first) })
    }
}

fn prepare(model: &Model, completion: Completion, limits: &Limits) -> Result<(Job, Echoes), ApiError> {
    let service = &model.service;
    let failed = |error| ApiError::engine(&error, "prompt");
    check_sampler(model, &completion.sampler)?;
    let tokenizer = service.tokenizer().ok().cloned();
    let grammar = completion.format.as_ref().map(|format| service.grammar(format)).transpose();
    let grammar = grammar.map_err(|error| ApiError::format(&error, "response_format"))?;
    let mut echoes = Echoes { tokenizer, with_logprobs: completion.logprobs.is_some(), prompts: Vec::new() };
    let mut requests = Vec::with_capacity(completion.prompts.len());
    // Of the prompts' texts and of the lists of their tokens.
    let listed = completion.logprobs.map_or(0, |others| LISTED_BYTES * (others + 1));
    let mut echoed = 0;
    for prompt in completion.prompts {
        let (text, prompt) = match prompt {
            Prompt::Text(text) => {
                model.check_text(&text, "prompt")?;
                // Names of control tokens are read, as other servers of this API do: clients that write templates themselves
                // send them here.
                let ids = service.rendered(&text).map_err(failed)?;
                (Some(text), ids)
            }
            Prompt::Ids(ids) => (None, ids),
        };
        check_length(prompt.len(), limits.prompt_tokens, "prompt")?;
        if completion.echo {
            let decoded = || echoes.tokenizer.as_ref().map(|it| it.decode(&prompt)).unwrap_or_default();
            let text = text.unwrap_or_else(decoded);
            echoed += completion.choices * (text.len() + prompt.len() * listed);
            if echoed > MOST_ECHOED_BYTES {
                let message = format!("The prompts are too long to be shown {} times.", completion.choices);
                return Err(ApiError::value("echo", message));
            }
            echoes.prompts.push((text, prompt.first().copied().unwrap_or_default()));
        }
        requests.push(Request {
            prompt,
            max_tokens: completion.max_tokens,
            sampler: completion.sampler.clone(),
            stop: completion.stop.clone(),
            ignore_end: completion.ignore_end,
            logprobs: completion.logprobs,
            prompt_logprobs: completion.logprobs.filter(|_| completion.echo),
            grammar: grammar.clone(),
            ..Request::default()
        });
    }
    Ok((Job { requests, choices: completion.choices, calls: None, prompt_field: "prompt" }, echoes))
}

/// Lists tokens with their probabilities.
pub(crate) struct Lister<'e> {
    echoes: &'e Echoes,
    /// The first token of the prompt, where the prompt is shown.
    first: Option<u32>,
}

impl Lister<'_> {
    /// Tokens of the prompt: the first has no probability.
    pub(crate) fn prompt(&self, list: &mut CompletionLogprobs, offset: &mut usize, tokens: &[TokenLogprob]) {
        if let Some(first) = self.first {
            let bytes = self.echoes.tokenizer.as_ref().and_then(|it| it.token_bytes(first)).unwrap_or_default();
            self.place(list, offset, first, &bytes);
            list.token_logprobs.push(None);
            list.top_logprobs.push(None);
        }
        tokens.iter().for_each(|token| self.token(list, offset, token));
    }

    /// One token.
    pub(crate) fn token(&self, list: &mut CompletionLogprobs, offset: &mut usize, token: &TokenLogprob) {
        self.place(list, offset, token.id, &token.bytes);
        list.token_logprobs.push(Some(f64::from(finite(token.logprob))));
        let own = (token.id, &token.bytes, token.logprob);
        let others = token.top.iter().map(|(id, bytes, logprob)| (*id, bytes, *logprob));
        let mut top = serde_json::Map::new();
        // Likeliest first. Different tokens may have one text: the likelier stands for both.
        for (_, bytes, logprob) in others.chain([own]) {
            top.entry(text(bytes)).or_insert_with(|| f64::from(finite(logprob)).into());
        }
        list.top_logprobs.push(Some(top));
    }

    fn place(&self, list: &mut CompletionLogprobs, offset: &mut usize, id: u32, bytes: &[u8]) {
        list.tokens.push(text(bytes));
        list.text_offset.push(*offset);
        // Special tokens are no part of the text.
        if !self.echoes.tokenizer.as_ref().is_some_and(|it| it.is_special(id)) {
            *offset += bytes.iter().filter(|byte| (**byte as i8) >= -64).count();
        }
    }
}

/// A token's text as OpenAI's completions write it.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// An answer, as far as it is made.
struct Text {
    choice: CompletionChoice,
    offset: usize,
}

async fn whole(
    head: Head,
    mut running: Running,
    mut costs: Costs,
    echoes: &Echoes,
) -> Result<CompletionReply, ApiError> {
    let choices = running.choices();
    let begin = |index| Text {
        choice: CompletionChoice {
            text: echoes.text(index, choices).to_owned(),
            index,
            logprobs: echoes.with_logprobs.then(CompletionLogprobs::default),
            finish_reason: None,
        },
        offset: 0,
    };
    let mut texts: Vec<Text> = (0..running.answers()).map(begin).collect();
    while let Some((index, piece)) = running.next().await? {
        let Text { choice, offset } = &mut texts[index];
        let list = choice.logprobs.as_mut().zip(echoes.lister(index, choices));
        match (piece, list) {
            (Piece::Prompt(tokens), Some((list, lister))) => lister.prompt(list, offset, &tokens),
            (Piece::Text { text, logprobs }, list) => {
                choice.text += &text;
                if let Some((list, lister)) = list {
                    logprobs.iter().for_each(|token| lister.token(list, offset, token));
                }
            }
            (Piece::Finish(finish), _) => {
                choice.finish_reason = Some(finish.reason);
                costs.add(index, &finish.metrics, finish.cause, index % choices == 0);
            }
            _ => {}
        }
    }
    Ok(CompletionReply {
        id: head.id,
        object: "text_completion",
        created: head.created,
        model: head.model,
        choices: texts.into_iter().map(|text| text.choice).collect(),
        usage: Some(Some(costs.usage)),
        system_fingerprint: FINGERPRINT,
        unicorn: Some(costs.unicorn),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(bytes: &[u8], logprob: f32, top: &[(&[u8], f32)]) -> TokenLogprob {
        let top = top.iter().map(|(bytes, logprob)| (0, bytes.to_vec(), *logprob)).collect();
        TokenLogprob { id: 0, bytes: bytes.to_vec(), logprob, top }
    }

    #[test]
    fn tokens_are_listed_with_offsets_in_characters() {
        let echoes = Echoes { tokenizer: None, with_logprobs: true, prompts: vec![("é!".to_owned(), 7)] };
        let lister = echoes.lister(0, 1).unwrap();
        let (mut list, mut offset) = (CompletionLogprobs::default(), 0);
        lister.prompt(&mut list, &mut offset, &[token("é".as_bytes(), -1.0, &[("é".as_bytes(), -1.0)])]);
        lister.token(&mut list, &mut offset, &token(b"!", f32::NEG_INFINITY, &[(b"?", -0.5), (b"\xff", -2.0)]));
        assert_eq!(list.tokens, ["", "é", "!"]);
        assert_eq!(list.text_offset, [0, 0, 1]);
        assert_eq!(list.token_logprobs, [None, Some(-1.0), Some(-9999.0)]);
        assert_eq!(list.top_logprobs[0], None);
        let top = list.top_logprobs[2].as_ref().unwrap();
        assert_eq!(top.keys().collect::<Vec<_>>(), ["?", "bytes:\\xff", "!"]);
    }
}
