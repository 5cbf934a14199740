//! Load, plan, step: the public interface to a running model.
//!
//! ```text
//!   path --ModelFile::open--> files --Engine::load--> Engine
//!                                                       |- tokenizer, template      text <-> ids
//!                                                       |- generate(Request)        ids -> text, streamed
//!                                                       `- logits, perplexity       what others check us by
//! ```
//!
//! The engine owns the compiled plan, the KV blocks and the sampler; the devices are listed in one place
//! ([`devices`]). It knows no HTTP and prints nothing: progress and text go through callbacks.
//!
//! ```no_run
//! use engine::{Engine, LoadOptions, ModelFile, Request};
//! let file = ModelFile::open("model.gguf".as_ref())?;
//! let mut engine = Engine::load(&file, &LoadOptions::default(), &mut |_, _| ())?;
//! let prompt = engine.prompt("The capital of France is")?;
//! let answer = engine.generate(&Request { prompt, max_tokens: Some(8), ..Request::default() }, &mut |_| {
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! println!("{}", answer.text);
//! # Ok::<(), engine::EngineError>(())
//! ```
#![forbid(unsafe_code)]

mod answer;
mod bench;
mod compare;
mod constraint;
mod damage;
pub mod devices;
mod error;
mod evaluate;
mod generate;
mod importance;
mod kv;
mod load;
mod logprobs;
mod metrics;
mod model;
mod quantizing;
mod recovery;
mod request;
mod sampler;
mod scheduler;
mod search;
mod self_check;
mod service;
mod source;
mod stop;
mod tools;
mod tune;
mod vocabulary;

pub use bench::{BenchOptions, BenchProgress, BenchReport, BenchResult, BenchTest, Phase, Roofs, median};
pub use compare::{Comparison, compare};
pub use constraint::{Constraint, ConstraintError, Format, Grammar, MAX_LARK_BYTES, MAX_REGEX_BYTES, Vocabulary};
pub use error::EngineError;
pub use evaluate::{Logits, Perplexity};
pub use graph::{Arithmetic, KvType, Part, Plan, bytes_text};
pub use load::{Engine, KvMemory, LoadOptions, ModelInfo, check_fits, check_strict};
pub use logprobs::TokenLogprob;
pub use metrics::{Metrics, peak_memory_bytes};
pub use model::Model;
pub use models::Shape;
pub use quantize;
pub use request::{Event, FinishReason, Generation, Pooling, Request};
pub use sampler::{Sampler, SamplerOptions};
pub use scheduler::{Speculation, Stats};
pub use search::{Found, SearchOptions, Sensitivity, Target};
pub use service::{Service, ServiceOptions, Sink, SubmitError, Ticket};
pub use source::{ModelFile, TensorGroup};
pub use text::{Chat, ChatTemplate, Detokenizer, TextError, Tokenizer};
pub use tools::{Delta, MAX_NAME_BYTES, MAX_TOOLS, Parser, Tool, ToolChoice, ToolFormat, ToolGrammar};
pub use tune::{TuneReport, TunedKernel, forget as forget_tuning};
pub use vulkan::KernelTime;
