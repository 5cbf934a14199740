//! Loading: the graph is built, planned and compiled while the tokenizer is read beside it.

use std::sync::Arc;

use graph::{Arithmetic, Execution, Graph, KvType, Part, Plan, PlanOptions, Span, Step};
use text::{ChatTemplate, Tokenizer};

use crate::{
    EngineError, ModelFile, Sequence,
    blocks::Blocks,
    devices::{DeviceOptions, Devices},
    vocabulary,
};

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Devices by name, in order of preference, separated by commas.
    pub device: String,
    /// Threads of the CPU device.
    pub threads: Option<usize>,
    /// Instruction set of the CPU device.
    pub isa: Option<String>,
    /// Tokens a sequence may have; `None` takes what memory allows, up to the model's own.
    pub context: Option<usize>,
    /// Sequences held at once.
    pub sequences: usize,
    /// Tokens of a prefill chunk.
    pub chunk: usize,
    /// Wanted outputs a step: 1 to generate, the chunk to score.
    pub outputs: usize,
    /// How products are computed.
    pub arithmetic: Arithmetic,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Bytes the CPU device may use.
    pub cpu_memory: Option<u64>,
    /// Parts that must run on a named device.
    pub pins: Vec<(Part, String)>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            device: "auto".to_owned(),
            threads: None,
            isa: None,
            context: None,
            sequences: 1,
            chunk: 512,
            outputs: 1,
            arithmetic: Arithmetic::Fast,
            kv: KvType::F16,
            cpu_memory: None,
            pins: Vec::new(),
        }
    }
}

/// What is known of a model once its graph is built.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ModelInfo {
    /// The model's name as its file gives it, else the file's.
    pub name: String,
    /// Architecture, as `gemma3`.
    pub architecture: String,
    /// The context it was made for, tokens.
    pub context: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Layers.
    pub layers: usize,
    /// Notices: what of the file is not used.
    pub notices: Vec<String>,
}

impl ModelInfo {
    fn new(file: &ModelFile, model: &models::Model) -> ModelInfo {
        ModelInfo {
            name: model.name.clone().unwrap_or_else(|| file.short_name().to_owned()),
            architecture: model.architecture.clone(),
            context: model.context,
            vocab: model.graph.vocab(),
            layers: model.graph.layers(),
            notices: model.skipped.clone(),
        }
    }
}

/// A model, planned and compiled.
pub struct Engine {
    pub(crate) info: ModelInfo,
    pub(crate) execution: Execution,
    pub(crate) devices: Devices,
    pub(crate) blocks: Blocks,
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<ChatTemplate>,
}

/// A model's graph and plan, before anything is compiled.
struct Planned {
    info: ModelInfo,
    graph: Arc<Graph>,
    devices: Devices,
    plan: Plan,
}

fn build(file: &ModelFile) -> Result<models::Model, EngineError> {
    models::build(file.source(), models::BuildOptions::default()).map_err(|source| match source {
        // Errors of the file itself name it already.
        models::ModelError::File(error) => EngineError::File(error),
        source => EngineError::Model { file: file.path.clone(), source: Box::new(source) },
    })
}

fn plan(file: &ModelFile, options: &LoadOptions) -> Result<Planned, EngineError> {
    let model = build(file)?;
    let device_options = DeviceOptions { threads: options.threads, isa: options.isa.clone() };
    let devices = Devices::open(&options.device, &device_options)?;
    let budgets = devices.list().iter().map(|d| if d.name() == "cpu" { options.cpu_memory } else { None }).collect();
    let plan_options = PlanOptions {
        context: options.context,
        model_context: model.context,
        sequences: options.sequences,
        step_tokens: options.chunk,
        step_outputs: options.outputs,
        kv: options.kv,
        arithmetic: options.arithmetic,
        budgets,
        pins: options.pins.clone(),
    };
    let plan = graph::plan(&model.graph, &devices.list(), &plan_options)?;
    let info = ModelInfo::new(file, &model);
    Ok(Planned { info, graph: model.graph, devices, plan })
}

impl Engine {
    /// The plan under these options, without loading anything.
    ///
    /// # Errors
    /// Where the model cannot be built or placed. A plan that does not fit is returned, and says so.
    pub fn plan(file: &ModelFile, options: &LoadOptions, measure: bool) -> Result<(ModelInfo, Plan), EngineError> {
        let mut planned = plan(file, options)?;
        if measure && let Some(cpu) = planned.devices.cpu() {
            let rates = cpu.measure();
            planned.plan.bytes.iter_mut().filter(|d| d.device == "cpu").for_each(|d| d.rates = Some(rates));
        }
        Ok((planned.info, planned.plan))
    }

    /// Loads a model. `progress` hears (bytes of weights done, bytes of all).
    ///
    /// # Errors
    /// Where the model cannot be built, does not fit, or a device fails.
    pub fn load(
        file: &ModelFile,
        options: &LoadOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Engine, EngineError> {
        let Planned { info, graph, devices, plan } = plan(file, options)?;
        if let Some(short) = plan.bytes.iter().find(|bytes| bytes.short_by() > 0) {
            let hint = match options.context {
                Some(context) => format!("; a context below {context} tokens (--ctx) needs less"),
                None => "; a smaller model or a smaller type of weights would fit".to_owned(),
            };
            return Err(EngineError::DoesNotFit {
                device: short.device.clone(),
                needed: short.total(),
                budget: short.budget,
                short: short.short_by(),
                hint,
            });
        }
        let blocks = Blocks::new(&plan, graph.windows());
        let (execution, tokenizer) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| vocabulary::tokenizer(file));
            let execution = plan.compile(graph, &devices.list(), progress);
            (execution, tokenizer.join())
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?.map(Arc::new);
        let template = vocabulary::template(file, &info.architecture, Some(&info.name))?;
        Ok(Engine { info, execution: execution?, devices, blocks, tokenizer, template })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The plan it obeys.
    pub fn plan_in_force(&self) -> &Plan {
        self.execution.plan()
    }

    /// Tokens a sequence may have.
    pub fn context(&self) -> usize {
        self.execution.plan().limits.context
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// Where the model carries none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, EngineError> {
        self.tokenizer.as_deref().ok_or_else(|| EngineError::NoTokenizer(self.info.name.clone()))
    }

    pub(crate) fn shared_tokenizer(&self) -> Result<Arc<Tokenizer>, EngineError> {
        self.tokenizer.clone().ok_or_else(|| EngineError::NoTokenizer(self.info.name.clone()))
    }

    /// The chat template; `None` for base models.
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

    /// Renders messages (objects with `role` and `content`) with the model's template.
    ///
    /// # Errors
    /// Where the model has no template, or it refuses the messages.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
    ) -> Result<String, EngineError> {
        let Some(template) = &self.template else {
            return Err(EngineError::NoTemplate { model: self.info.name.clone() });
        };
        render(template, self.tokenizer()?, messages, tools)
    }

    /// Refuses ids that the model does not have before any of them is fed.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<(), EngineError> {
        let vocab = self.execution.graph().vocab_in();
        match ids.iter().find(|id| **id as usize >= vocab) {
            Some(&id) => Err(EngineError::IdOutOfRange { id, vocab }),
            None => Ok(()),
        }
    }

    /// Feeds tokens of one sequence and returns the logits of the last `outputs` of them, `[outputs, vocab]`. The
    /// tokens must fit one step.
    pub(crate) fn step(
        &mut self,
        sequence: &mut Sequence,
        ids: &[u32],
        outputs: usize,
    ) -> Result<&mut [f32], EngineError> {
        let past = sequence.len();
        let context = self.context();
        if past + ids.len() > context || !self.blocks.grow(sequence, ids.len()) {
            return Err(EngineError::PromptTooLong { prompt: past + ids.len(), context, limit: self.limit_hint() });
        }
        let positions: Vec<u32> = (past as u32..(past + ids.len()) as u32).collect();
        let outputs: Vec<u32> = ((ids.len() - outputs) as u32..ids.len() as u32).collect();
        let spans = [Span { rows: 0..ids.len(), past, tables: &sequence.tables }];
        let step = Step { ids, positions: &positions, spans: &spans, outputs: &outputs };
        let logits = self.execution.run(&step)?;
        sequence.tokens.extend_from_slice(ids);
        Ok(logits)
    }

    pub(crate) fn limit_hint(&self) -> String {
        let own = self.info.context;
        if own > self.context() { format!(" (at most {own} for this model)") } else { String::new() }
    }

    /// Cuts a sequence to its first `len` tokens, or empties it where the cache no longer holds what that needs.
    /// Returns the tokens it has then.
    pub fn truncate(&mut self, sequence: &mut Sequence, len: usize) -> usize {
        let len = if self.blocks.can_truncate(sequence, len) { len } else { 0 };
        self.blocks.truncate(sequence, len);
        len
    }

    /// Measures the read bandwidth of the CPU device, where it is used.
    pub fn measure_bandwidth(&self) -> Option<f64> {
        self.devices.cpu().map(|cpu| cpu.measure().read_bytes_per_s)
    }
}

/// Renders messages with a template and the names of a tokenizer's begin and end tokens.
///
/// # Errors
/// Where the template refuses the messages.
pub(crate) fn render(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[serde_json::Value],
    tools: Option<&[serde_json::Value]>,
) -> Result<String, EngineError> {
    let name = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
    let chat = text::Chat {
        messages,
        tools,
        add_generation_prompt: true,
        bos_token: name(tokenizer.bos()),
        eos_token: name(tokenizer.eos()),
        ..text::Chat::default()
    };
    Ok(template.render(&chat)?)
}

impl ModelFile {
    /// The tokenizer alone, without loading the model.
    ///
    /// # Errors
    /// Where the file carries none, or a damaged one.
    pub fn tokenizer(&self) -> Result<Tokenizer, EngineError> {
        vocabulary::tokenizer(self)?.ok_or_else(|| EngineError::NoTokenizer(self.short_name().to_owned()))
    }

    /// What the model is, from its graph; nothing is computed.
    ///
    /// # Errors
    /// Where the graph cannot be built.
    pub fn info(&self) -> Result<ModelInfo, EngineError> {
        let model = build(self)?;
        Ok(ModelInfo::new(self, &model))
    }

    /// The prompt that the model's template makes of messages, without loading the model.
    ///
    /// # Errors
    /// Where there is no template, or it refuses the messages.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
    ) -> Result<String, EngineError> {
        let info = self.info()?;
        let Some(template) = vocabulary::template(self, &info.architecture, Some(&info.name))? else {
            return Err(EngineError::NoTemplate { model: info.name });
        };
        render(&template, &self.tokenizer()?, messages, tools)
    }
}
