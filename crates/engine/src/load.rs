//! Loading: the graph is built, planned and compiled while the tokenizer is read beside it.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use graph::{Arithmetic, CONTEXT_ENOUGH, DeviceError, Graph, KvType, Part, Plan, PlanOptions};
use text::Tokenizer;

use crate::{
    EngineError, Model, ModelFile, Roofs, ServiceOptions, Speculation, ToolFormat,
    devices::{DeviceOptions, Devices},
    model::render,
    recovery::{Recovery, lock},
    scheduler::{MAX_DRAFT, Scheduler},
    self_check, vocabulary,
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
    /// Sequences that run at once, at most.
    pub sequences: usize,
    /// Memory for the KV cache.
    pub kv_memory: KvMemory,
    /// Tokens of a prefill chunk.
    pub chunk: usize,
    /// Wanted outputs a step: 1 to generate, the chunk to score.
    pub outputs: usize,
    /// Where drafts of the next tokens come from. Other than [`Speculation::Off`] it makes room for their outputs.
    pub speculation: Speculation,
    /// How products are computed.
    pub arithmetic: Arithmetic,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Bytes the CPU device may use.
    pub cpu_memory: Option<u64>,
    /// Bytes a Vulkan device may use.
    pub gpu_memory: Option<u64>,
    /// Whether the kernels of Vulkan devices are timed: see [`Engine::kernel_times`].
    pub profile: bool,
    /// How long a submit to a Vulkan device may last by estimate; `None` takes what the environment says
    /// (`UNICORN_VULKAN_SUBMIT_MS`), else the rule of [`vulkan::VulkanOptions::submit_bound`].
    pub submit_bound: Option<Duration>,
    /// Parts that must run on a named device.
    pub pins: Vec<(Part, String)>,
    /// Whether anything that is not on the device it was asked for on is an error.
    pub strict: bool,
    /// Whether the inputs of matrices can be read, for [`Engine::importance`]. They take memory.
    pub inputs: bool,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            device: "auto".to_owned(),
            threads: None,
            isa: None,
            context: None,
            sequences: 1,
            kv_memory: KvMemory::Contexts,
            chunk: 512,
            outputs: 1,
            speculation: Speculation::default(),
            arithmetic: Arithmetic::Fast,
            kv: KvType::F16,
            cpu_memory: None,
            gpu_memory: None,
            profile: false,
            submit_bound: None,
            pins: Vec::new(),
            strict: false,
            inputs: false,
        }
    }
}

impl LoadOptions {
    /// How its devices are set up.
    pub(crate) fn devices(&self) -> DeviceOptions {
        let (threads, isa) = (self.threads, self.isa.clone());
        DeviceOptions { threads, isa, profile: self.profile, submit_bound: self.submit_bound }
    }

    /// Outputs of a step: one of each sequence and a whole draft, at least.
    fn step_outputs(&self) -> usize {
        match self.speculation {
            Speculation::Off => self.outputs,
            Speculation::Ngram => self.outputs.max(self.sequences.saturating_add(MAX_DRAFT)),
        }
    }
}

/// Memory for the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvMemory {
    /// A full context of every sequence and no more.
    #[default]
    Contexts,
    /// A quarter of what the preferred device has free, one full context at least: what sequences computed is kept for others
    /// to go on from.
    Quarter,
    /// So many bytes, one full context at least.
    Bytes(u64),
}

impl KvMemory {
    /// In bytes, where the first device may use `budget`.
    fn bytes(self, budget: Option<u64>, devices: &Devices) -> Option<u64> {
        match self {
            KvMemory::Contexts => None,
            KvMemory::Quarter => {
                let free = devices.list().first().map(|device| device.memory().available_bytes);
                // The reference has no memory of its own to speak of.
                let free = free.filter(|bytes| *bytes < u64::MAX).unwrap_or(0);
                Some(budget.map_or(free, |budget| budget.min(free)) / 4)
            }
            KvMemory::Bytes(bytes) => Some(bytes),
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

/// A model, planned and compiled. Reads as the [`Model`].
pub struct Engine {
    pub(crate) model: Arc<Model>,
    pub(crate) scheduler: Scheduler,
    /// Shared with what opens them anew.
    pub(crate) devices: Arc<Mutex<Devices>>,
    cpu: Option<Arc<cpu::Cpu>>,
}

impl Deref for Engine {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

/// A model's graph and plan, before anything is compiled.
struct Planned {
    info: ModelInfo,
    graph: Arc<Graph>,
    devices: Devices,
    options: PlanOptions,
    plan: Plan,
}

pub(crate) fn build(file: &ModelFile, inputs: bool) -> Result<models::Model, EngineError> {
    models::build(file.source(), models::BuildOptions { inputs, ..models::BuildOptions::default() }).map_err(|source| {
        match source {
            // Errors of the file itself name it already.
            models::ModelError::File(error) => EngineError::File(error),
            source => EngineError::Model { file: file.path.clone(), source: Box::new(source) },
        }
    })
}

/// Bytes that the CPU device may use: as asked, else the planner's own rule. The weights of a shape that are not made
/// yet will lie in the same memory.
fn cpu_budget(cpu: &dyn graph::Device, file: &ModelFile, options: &LoadOptions) -> Option<u64> {
    match file.as_shape().map_or(0, |shape| shape.buffer_bytes()) {
        0 => options.cpu_memory,
        bytes => {
            let budget = options.cpu_memory.unwrap_or_else(|| graph::default_budget(cpu.memory()));
            Some(budget.saturating_sub(bytes))
        }
    }
}

/// Opens the devices and plans; where `checks`, a Vulkan device is checked before.
fn plan(file: &ModelFile, options: &LoadOptions, checks: bool) -> Result<Planned, EngineError> {
    let model = build(file, options.inputs)?;
    let mut devices = Devices::open(&options.device, &options.devices())?;
    let mut info = ModelInfo::new(file, &model);
    info.notices.extend(devices.notices().iter().cloned());
    if checks {
        let found = self_check::check(&mut devices, &model.graph, options.arithmetic, options.kv)?;
        if let Some(excluded) = found.excluded.first().filter(|_| options.strict) {
            return Err(EngineError::Strict { device: options.device.clone(), fallback: excluded.clone() });
        }
        info.notices.extend(found.notices.into_iter().chain(found.excluded));
    }
    let (mut plan_options, mut plan) = place(file, &model, &devices, options);
    // What a GPU does not take goes to the CPU, whether or not that was named.
    if !options.strict && devices.vulkan().is_some() && falls_short(&plan, model.context) && devices.add_fallback()? {
        (plan_options, plan) = place(file, &model, &devices, options);
    }
    let plan = plan.map_err(|error| match error {
        graph::PlanError::Context { asked, own } => EngineError::ContextTooLong { asked, own },
        error => EngineError::Plan(error),
    })?;
    Ok(Planned { info, graph: model.graph, devices, options: plan_options, plan })
}

fn place(
    file: &ModelFile,
    model: &models::Model,
    devices: &Devices,
    options: &LoadOptions,
) -> (PlanOptions, Result<Plan, graph::PlanError>) {
    let all = devices.list();
    let budget = |device: &dyn graph::Device| match device.name() {
        "cpu" => cpu_budget(device, file, options),
        name if name.starts_with("vulkan") => options.gpu_memory,
        _ => None,
    };
    let budgets: Vec<Option<u64>> = all.iter().map(|device| budget(*device)).collect();
    let plan_options = PlanOptions {
        context: options.context,
        model_context: model.context,
        sequences: options.sequences,
        kv_bytes: options.kv_memory.bytes(budgets.first().copied().flatten(), devices),
        step_tokens: options.chunk,
        step_outputs: options.step_outputs(),
        kv: options.kv,
        arithmetic: options.arithmetic,
        budgets,
        pins: options.pins.clone(),
    };
    let plan = graph::plan(&model.graph, &all, &plan_options);
    (plan_options, plan)
}

/// Whether a plan wants another device: there is none, it does not fit, or only with less context than is useful.
fn falls_short(plan: &Result<Plan, graph::PlanError>, model_context: usize) -> bool {
    match plan {
        Err(graph::PlanError::Unsupported { .. }) => true,
        Err(_) => false,
        Ok(plan) => {
            let useful = plan.context_asked.is_some() || plan.limits.context >= model_context.min(CONTEXT_ENOUGH);
            plan.is_short() || !useful
        }
    }
}

/// Refuses a plan in which anything is not where it was asked for, where that is to be refused.
///
/// # Errors
/// [`EngineError::Strict`], with the first that is elsewhere.
pub fn check_strict(plan: &Plan, options: &LoadOptions) -> Result<(), EngineError> {
    match plan.fallbacks.first() {
        Some(fallback) if options.strict => {
            Err(EngineError::Strict { device: options.device.clone(), fallback: fallback.clone() })
        }
        _ => Ok(()),
    }
}

/// Refuses a plan for which a device lacks memory.
///
/// # Errors
/// [`EngineError::DoesNotFit`], with what would help.
pub fn check_fits(plan: &Plan) -> Result<(), EngineError> {
    let Some(short) = plan.bytes.iter().find(|bytes| bytes.short_by() > 0) else { return Ok(()) };
    let (weights, context) = (short.weights_total() + short.mapped, plan.limits.context);
    let hint = if weights > short.budget {
        let weights = graph::bytes_text(weights);
        format!("the weights alone take {weights}: a smaller model or a smaller type of weights would fit")
    } else {
        let (kv, rest) = (graph::bytes_text(short.kv), graph::bytes_text(short.activations));
        // A context that nobody asked for is already the least.
        let less = if plan.context_asked.is_some() { "a shorter context, or fewer tokens" } else { "fewer tokens" };
        format!(
            "the KV cache for a context of {context} tokens takes {kv}, the working memory for {} tokens at once {rest}: \
             {less} at once need less",
            plan.limits.tokens
        )
    };
    let (device, needed, budget) = (short.device.clone(), short.total(), short.budget);
    Err(EngineError::DoesNotFit { device, needed, budget, short: short.short_by(), hint })
}

/// Times that less is tried to be put on a GPU, where it runs out of memory while it is filled.
const RETREATS: usize = 3;

/// Compiles a plan. Where a GPU has less memory than it said, less is put there, and at last nothing.
fn compiled(
    file: &ModelFile,
    options: &LoadOptions,
    mut planned: Planned,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Planned, graph::Execution), EngineError> {
    let mut options = options.clone();
    let mut notices = Vec::new();
    loop {
        let error = match planned.plan.clone().compile(planned.graph.clone(), &planned.devices.list(), progress) {
            Ok(execution) => {
                planned.info.notices.extend(notices);
                return Ok((planned, execution));
            }
            Err(error) => error,
        };
        let bytes = planned.plan.bytes.iter().find(|bytes| bytes.device.starts_with("vulkan") && bytes.total() > 0);
        let (DeviceError::OutOfMemory { .. } | DeviceError::Lost { .. }, Some(bytes), false) =
            (&error, bytes, options.strict)
        else {
            return Err(error.into());
        };
        if notices.len() < RETREATS {
            options.gpu_memory = Some(bytes.total() / 4 * 3);
            notices.push(format!("{error}: less is put there"));
        } else {
            options.device = "cpu".to_owned();
            notices.push(format!("{error}: everything runs on the CPU"));
        }
        planned = plan(file, &options, true)?;
        check_fits(&planned.plan)?;
    }
}

impl Engine {
    /// Loads a model. `progress` hears (bytes of weights done, bytes of all). A tokenizer or a chat template that
    /// cannot be used is a notice, and an error where it is first asked for: without them the model still runs on ids.
    ///
    /// # Errors
    /// Where the model cannot be built, does not fit, or a device fails.
    pub fn load(
        file: &ModelFile,
        options: &LoadOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Engine, EngineError> {
        let is_shape = file.as_shape().is_some();
        let mut planned = plan(file, options, !is_shape)?;
        check_strict(&planned.plan, options)?;
        check_fits(&planned.plan)?;
        let made;
        let file = match file.as_shape() {
            None => file,
            Some(shape) => {
                // Its weights are made only now that they fit.
                made = ModelFile::of_shape(shape.make());
                planned = plan(&made, options, true)?;
                check_strict(&planned.plan, options)?;
                check_fits(&planned.plan)?;
                &made
            }
        };
        let (loaded, tokenizer) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| vocabulary::tokenizer(file));
            (compiled(file, options, planned, progress), tokenizer.join())
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (Planned { mut info, graph, devices, options: plan_options, plan }, execution) = loaded?;
        let vocab_in = graph.vocab_in();
        let (tokenizer, tokenizer_error) = usable(tokenizer.map(|found| found.map(Arc::new)));
        let (template, template_error) = usable(vocabulary::template(file, &info.architecture, Some(&info.name)));
        for (what, error) in [("tokenizer", &tokenizer_error), ("chat template", &template_error)] {
            info.notices.extend(error.iter().map(|error| format!("the {what} cannot be used: {error}")));
        }
        let pooling = file.pooling();
        let mut scheduler = Scheduler::new(execution, ServiceOptions::default().gap);
        scheduler.set_speculation(options.speculation);
        let cpu = devices.shared_cpu();
        let has_gpu = devices.vulkan().is_some();
        let devices = Arc::new(Mutex::new(devices));
        if has_gpu {
            let (plan, devices, strict, cpu_memory) =
                (plan.clone(), devices.clone(), options.strict, options.cpu_memory);
            let losses = Vec::new();
            let mut recovery = Recovery { graph, plan, options: plan_options, cpu_memory, devices, strict, losses };
            scheduler.set_recovery(Box::new(move |error| recovery.recover(error)));
        }
        // A template that cannot be read was reported above.
        let tool_format = ToolFormat::detect(file.template_source().ok().flatten().as_deref());
        let model = Model {
            info,
            file: file.short_name().to_owned(),
            plan,
            tokenizer,
            tokenizer_error,
            template,
            template_error,
            variables: file.variables.clone(),
            pooling,
            tool_format,
            vocabulary: OnceLock::new(),
            vocab_in,
        };
        Ok(Engine { model: Arc::new(model), scheduler, devices, cpu })
    }

    /// Threads of the CPU device, where it is used.
    pub fn threads(&self) -> Option<usize> {
        self.cpu.as_ref().map(|cpu| cpu.threads())
    }

    /// The instruction set that the CPU device's kernels are chosen by, where it is used.
    pub fn isa(&self) -> Option<&str> {
        self.cpu.as_ref().map(|cpu| cpu.isa())
    }

    /// Times of the kernels of a Vulkan device since the last call, the longest first; none unless
    /// [`LoadOptions::profile`] asked for them.
    pub fn kernel_times(&self) -> Vec<vulkan::KernelTime> {
        lock(&self.devices).vulkan().map_or(Vec::new(), |vulkan| vulkan.profile())
    }

    /// Measures what the device that is preferred can do at most.
    pub fn measure_roofs(&self) -> Roofs {
        let rates = lock(&self.devices).measure();
        Roofs {
            read_bytes_per_s: rates.map(|rates| rates.read_bytes_per_s),
            int8_ops_per_s: rates.and_then(|rates| rates.int8_ops_per_s),
        }
    }

    /// Measures the read bandwidth of the device that is preferred.
    pub fn measure_bandwidth(&self) -> Option<f64> {
        lock(&self.devices).measure_bandwidth()
    }
}

/// What could be read, and why the rest could not.
fn usable<T>(read: Result<Option<T>, EngineError>) -> (Option<T>, Option<String>) {
    match read {
        Ok(found) => (found, None),
        Err(error) => (None, Some(error.to_string())),
    }
}

impl ModelFile {
    /// The plan under these options, without loading anything.
    ///
    /// # Errors
    /// Where the model cannot be built or placed. A plan that does not fit is returned, and says so.
    pub fn plan(&self, options: &LoadOptions, measure: bool) -> Result<(ModelInfo, Plan), EngineError> {
        let mut planned = plan(self, options, false)?;
        if measure {
            planned.devices.measure_all(&planned.plan.used_devices());
            for (bytes, device) in planned.plan.bytes.iter_mut().zip(planned.devices.list()) {
                bytes.rates = device.rates();
            }
        }
        Ok((planned.info, planned.plan))
    }

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
        let model = build(self, false)?;
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
        render(&template, &self.tokenizer()?, messages, tools, self.variables.clone())
    }
}
