//! `/tokenize`, `/detokenize` and `/tokenizer_info`.

use std::sync::Arc;

use axum::{Json, extract::State};
use engine::Tokenizer;

use crate::{
    body::Payload,
    calls::Calls,
    error::ApiError,
    state::{App, Model},
    types::{
        error::ErrorReply,
        messages::messages,
        tokenize::{
            DetokenizeReply, DetokenizeRequest, Piece, TOKENIZER_CLASS, TokenOrPiece, TokenizeReply, TokenizeRequest,
            TokenizerInfo,
        },
        tools::{self, Choice, Tools},
    },
};

/// Bytes of a text that is encoded without regard to the context: it takes some hundred times as many of memory.
const MOST_TEXT_BYTES: usize = 4 << 20;

/// The ids of a text, or of a chat as the model's template renders it.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest,
    responses((status = 200, body = TokenizeReply), (status = "4XX", body = ErrorReply)))]
pub(crate) async fn tokenize(
    State(app): State<App>,
    Payload(request, share): Payload<TokenizeRequest>,
) -> Result<Json<TokenizeReply>, ApiError> {
    let model = app.model(request.model.as_deref())?;
    let reply = move || {
        let reply = reply(&model, request);
        drop(share);
        reply
    };
    Ok(Json(app.aside(reply).await??))
}

fn reply(model: &Arc<Model>, request: TokenizeRequest) -> Result<TokenizeReply, ApiError> {
    let service = &model.service;
    let with_pieces = request.with_pieces.unwrap_or(false);
    let ids = ids(model, request)?;
    let tokenizer = service.tokenizer().map_err(|error| ApiError::engine(&error, "prompt"))?;
    let token = |id: u32| if with_pieces { piece(tokenizer, id) } else { TokenOrPiece::Token(id) };
    Ok(TokenizeReply {
        count: ids.len(),
        tokens: ids.into_iter().map(token).collect(),
        max_model_len: service.context(),
    })
}

fn ids(model: &Arc<Model>, request: TokenizeRequest) -> Result<Vec<u32>, ApiError> {
    let service = &model.service;
    let (text, field, rendered) = match (request.content, request.prompt, request.messages) {
        (Some(text), None, None) => (text, "content", false),
        (None, Some(text), None) => (text, "prompt", false),
        (None, None, Some(chat)) => {
            let variables = request.chat_template_kwargs.unwrap_or_default();
            let functions = tools::functions(request.tools.unwrap_or_default())?;
            let tools = Tools::new(functions, Choice::Auto, None)?;
            let calls = Calls::new(model, tools.as_ref(), false);
            let chat = calls.messages(&messages(chat)?);
            let text = service.render(&chat, calls.declared().as_deref(), &variables);
            (text.map_err(|error| ApiError::engine(&error, "messages"))?, "messages", true)
        }
        (None, None, None) => return Err(ApiError::missing("prompt")),
        _ => return Err(ApiError::bad_request("Only one of content, prompt and messages may be given.")),
    };
    if text.len() > MOST_TEXT_BYTES {
        let message = format!("{} bytes of text: at most {MOST_TEXT_BYTES} are encoded at once.", text.len());
        return Err(ApiError::value(field, message));
    }
    // As the servers do from which the names are.
    let add_special = request.add_special.unwrap_or(field != "content");
    let parse_special = request.parse_special.unwrap_or(true);
    let tokenizer = service.tokenizer().map_err(|error| ApiError::engine(&error, field))?;
    let ids = match (add_special, rendered || parse_special) {
        (true, true) => service.rendered(&text),
        (true, false) => service.prompt(&text),
        (false, special) => tokenizer.encode(&text, special).map_err(Into::into),
    };
    ids.map_err(|error| ApiError::engine(&error, field))
}

fn piece(tokenizer: &Tokenizer, id: u32) -> TokenOrPiece {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let piece = String::from_utf8(bytes).map_or_else(|error| Piece::Bytes(error.into_bytes()), Piece::Text);
    TokenOrPiece::Piece { id, piece }
}

/// The text of ids.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest,
    responses((status = 200, body = DetokenizeReply), (status = "4XX", body = ErrorReply)))]
pub(crate) async fn detokenize(
    State(app): State<App>,
    Payload(request, share): Payload<DetokenizeRequest>,
) -> Result<Json<DetokenizeReply>, ApiError> {
    let model = app.model(request.model.as_deref())?;
    let text = move || -> Result<String, ApiError> {
        let tokenizer = model.service.tokenizer().map_err(|error| ApiError::engine(&error, "tokens"))?;
        let vocab = tokenizer.vocab_size();
        if let Some(at) = request.tokens.iter().position(|id| *id as usize >= vocab) {
            let message = format!("Token id {} is outside the vocabulary of {vocab}.", request.tokens[at]);
            return Err(ApiError::value(format!("tokens[{at}]"), message));
        }
        let text = tokenizer.decode(&request.tokens);
        drop(share);
        Ok(text)
    };
    let text = app.aside(text).await??;
    Ok(Json(DetokenizeReply { content: text.clone(), prompt: text }))
}

/// What a client must know of the tokenizer to build prompts itself.
#[utoipa::path(get, path = "/tokenizer_info", tag = "tokens",
    responses((status = 200, body = TokenizerInfo), (status = "4XX", body = ErrorReply)))]
pub(crate) async fn info(State(app): State<App>) -> Result<Json<TokenizerInfo>, ApiError> {
    let model = app.model(None)?;
    let service = &model.service;
    let tokenizer = service.tokenizer().map_err(|error| ApiError::engine(&error, "model"))?;
    let name = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).map(str::to_owned);
    Ok(Json(TokenizerInfo {
        tokenizer_class: TOKENIZER_CLASS,
        bos_token: name(tokenizer.bos()),
        eos_token: name(tokenizer.eos()),
        pad_token: None,
        model_max_length: service.context(),
        chat_template: service.template().map(|template| template.source().to_owned()),
    }))
}
