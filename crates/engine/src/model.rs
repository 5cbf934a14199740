//! What of a loaded model needs no device: its words, its limits, its plan.

use std::sync::{Arc, OnceLock};

use graph::Plan;
use serde_json::{Map, Value};
use text::{ChatTemplate, Tokenizer};

use crate::{EngineError, Format, Grammar, ModelInfo, Pooling, Request, ToolFormat, Vocabulary};

/// A loaded model as everyone may read it, while the engine runs. [`crate::Engine`] and [`crate::Service`] deref to it.
#[derive(Debug)]
pub struct Model {
    pub(crate) info: ModelInfo,
    /// The last part of the path of its file.
    pub(crate) file: String,
    pub(crate) plan: Plan,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    /// Why the tokenizer that the file carries cannot be used.
    pub(crate) tokenizer_error: Option<String>,
    pub(crate) template: Option<ChatTemplate>,
    /// Why the template that the file carries cannot be used.
    pub(crate) template_error: Option<String>,
    /// What the template reads besides, unless a caller of [`Model::render`] says otherwise.
    pub(crate) variables: Map<String, Value>,
    pub(crate) pooling: Pooling,
    pub(crate) tool_format: ToolFormat,
    /// The tokens as grammars need them; made when first one is asked for.
    pub(crate) vocabulary: OnceLock<Vocabulary>,
    /// Ids that can be fed.
    pub(crate) vocab_in: usize,
}

impl Model {
    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The last part of the path of its file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Tokens a sequence may have.
    pub fn context(&self) -> usize {
        self.plan.limits.context
    }

    /// How texts are embedded: as the file says, else by the mean.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// How the model is told of tools, and how it calls them.
    pub fn tool_format(&self) -> ToolFormat {
        self.tool_format
    }

    /// Compiles what an answer must look like.
    ///
    /// # Errors
    /// Where the model has no tokenizer, or the format breaks its rules or a bound.
    pub fn grammar(&self, format: &Format) -> Result<Grammar, EngineError> {
        let tokenizer = self.tokenizer()?;
        let vocabulary = self.vocabulary.get_or_init(|| Vocabulary::new(tokenizer.clone()));
        Ok(Grammar::compile(vocabulary, format)?)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// Where the model carries none, or one that cannot be used.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>, EngineError> {
        self.tokenizer.as_ref().ok_or_else(|| match &self.tokenizer_error {
            Some(error) => EngineError::Unusable(error.clone()),
            None => EngineError::NoTokenizer(self.info.name.clone()),
        })
    }

    /// Whether the model can be chatted with; base models have no template and cannot.
    ///
    /// # Errors
    /// Where the model carries a template that cannot be used.
    pub fn can_chat(&self) -> Result<bool, EngineError> {
        match &self.template_error {
            Some(error) => Err(EngineError::Unusable(error.clone())),
            None => Ok(self.template.is_some()),
        }
    }

    /// The chat template; `None` where there is none or none that can be used: [`Model::can_chat`] tells which.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The ids of a prompt to be completed, with the begin token where the model wants one.
    ///
    /// # Errors
    /// Where the text cannot be encoded.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        self.encode(text, false)
    }

    /// The ids of a rendered template: special tokens are read, and the begin token is added unless it is there.
    ///
    /// # Errors
    /// Where the text cannot be encoded.
    pub fn rendered(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        self.encode(text, true)
    }

    fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, EngineError> {
        let tokenizer = self.tokenizer()?;
        let mut ids = tokenizer.encode(text, parse_special)?;
        if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Renders messages (objects with `role` and `content`) with the model's template. `variables` are what the template
    /// reads beside messages and tools, as `enable_thinking`; they go before those of [`crate::ModelFile::set_variables`].
    ///
    /// # Errors
    /// Where the model has no template, or one that cannot be used or refuses the messages.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        variables: &Map<String, Value>,
    ) -> Result<String, EngineError> {
        self.can_chat()?;
        let Some(template) = &self.template else {
            return Err(EngineError::NoTemplate { model: self.info.name.clone() });
        };
        let given = variables.iter().map(|(name, value)| (name.clone(), value.clone()));
        let variables = self.variables.clone().into_iter().chain(given).collect();
        render(template, self.tokenizer()?, messages, tools, variables)
    }

    /// Refuses what cannot be run before anything of it is.
    ///
    /// # Errors
    /// Where the prompt is empty or too long, an id or a setting is out of its range.
    pub fn check(&self, request: &Request) -> Result<(), EngineError> {
        request.sampler.check(self.info.vocab)?;
        if request.stop.iter().any(String::is_empty) {
            let (value, expected) = (String::new(), "a string that is not empty");
            return Err(EngineError::Setting { name: "stop", value, expected });
        }
        self.check_ids(&request.prompt)
    }

    /// Refuses ids that cannot be one sequence.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<(), EngineError> {
        if ids.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&id) = ids.iter().find(|id| **id as usize >= self.vocab_in) {
            return Err(EngineError::IdOutOfRange { id, vocab: self.vocab_in });
        }
        let (prompt, context) = (ids.len(), self.context());
        if prompt > context {
            return Err(EngineError::PromptTooLong { prompt, context, limit: self.limit_hint() });
        }
        Ok(())
    }

    /// How far the context could be raised, in words.
    pub(crate) fn limit_hint(&self) -> String {
        let own = self.info.context;
        if own > self.context() {
            format!("shorten it, or raise --ctx (at most {own} for this model)")
        } else {
            "shorten it: the model was made for no more".to_owned()
        }
    }
}

/// Renders messages with a template and the names of a tokenizer's begin and end tokens.
///
/// # Errors
/// Where the template refuses the messages.
pub(crate) fn render(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Value],
    tools: Option<&[Value]>,
    variables: Map<String, Value>,
) -> Result<String, EngineError> {
    let name = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
    let chat = text::Chat {
        messages,
        tools,
        add_generation_prompt: true,
        bos_token: name(tokenizer.bos()),
        eos_token: name(tokenizer.eos()),
        extra: variables,
        ..text::Chat::default()
    };
    Ok(template.render(&chat)?)
}
