//! Tools, between the wire and the engine: what the model is told, what its answer is held to, and how its calls are
//! read.

use engine::{Format, Grammar, Parser, Tool, ToolChoice, ToolFormat};
use serde_json::Value;

use crate::{
    error::ApiError,
    state::Model,
    types::tools::{Choice, Function, Tools},
};

/// The tools of a request, for one model.
pub(crate) struct Calls {
    format: ToolFormat,
    tools: Vec<Tool>,
    choice: ToolChoice,
    parallel: bool,
    /// Whether an answer that is no call has a format: JSON is then no call unless it is marked as one.
    formatted: bool,
}

impl Calls {
    /// The tools of a request; with none, what earlier turns called is still told the model's way.
    pub(crate) fn new(model: &Model, tools: Option<&Tools>, formatted: bool) -> Calls {
        let format = model.service.tool_format();
        let Some(Tools { functions, choice, parallel }) = tools else {
            return Calls { format, tools: Vec::new(), choice: ToolChoice::None, parallel: false, formatted };
        };
        let tool = |function: &Function| Tool {
            name: function.name.clone(),
            description: function.description.clone(),
            parameters: function.parameters.clone().filter(|schema| !schema.is_null()),
            strict: function.strict.unwrap_or(false),
        };
        let choice = match choice {
            Choice::Auto => ToolChoice::Auto,
            Choice::None => ToolChoice::None,
            Choice::Required => ToolChoice::Required,
            Choice::Named(name) => ToolChoice::Named(name.clone()),
        };
        Calls { format, tools: functions.iter().map(tool).collect(), choice, parallel: *parallel, formatted }
    }

    /// Whether the model may make calls.
    pub(crate) fn may_call(&self) -> bool {
        self.choice != ToolChoice::None
    }

    /// The messages as the model's template takes them.
    pub(crate) fn messages(&self, messages: &[Value]) -> Vec<Value> {
        self.format.messages(messages, &self.tools, &self.choice)
    }

    /// The tools as the model's template takes them, where it does.
    pub(crate) fn declared(&self) -> Option<Vec<Value>> {
        let told = self.may_call() && self.format.template_takes_tools();
        told.then(|| self.tools.iter().map(Tool::to_json).collect())
    }

    /// What an answer is held to: the tools where it may call, else the format, which came in the field `path`.
    pub(crate) fn grammar(
        &self,
        model: &Model,
        format: Option<&Format>,
        path: &str,
    ) -> Result<Option<Grammar>, ApiError> {
        let compile = |format: &Format, path: &str| {
            let compiled = model.service.grammar(format);
            compiled.map(Some).map_err(|error| ApiError::format(&error, path))
        };
        if !self.may_call() {
            return format.map_or(Ok(None), |format| compile(format, path));
        }
        if self.choice == ToolChoice::Auto && format.is_some_and(|format| !self.format.takes_answer(format)) {
            let why = "With this model it goes with tools only where tool_choice is none, required or a function.";
            return Err(ApiError::unsupported(path, why));
        }
        let tokenizer = model.service.tokenizer().map_err(|error| ApiError::engine(&error, "tools"))?;
        let grammar = self.format.grammar(&self.tools, &self.choice, self.parallel, format, tokenizer);
        match grammar.map_err(|error| ApiError::format(&error.into(), "tools"))? {
            Some(grammar) => compile(&Format::Tools(grammar), "tools"),
            None => Ok(None),
        }
    }

    /// Reads the calls of one answer; `None` where there may be none.
    pub(crate) fn parser(&self) -> Option<Parser> {
        let parser = self.may_call().then(|| Parser::new(self.format, &self.tools))?;
        let is_either = self.formatted && self.choice == ToolChoice::Auto;
        Some(if is_either { parser.marked() } else { parser })
    }
}
