//! The blocks that families are made of: each adds the nodes of one step of the paper, with its weights.

use graph::{Activation, GraphBuilder, Part, ValueId, WeightId};

use crate::{
    BuildOptions, Config, ModelError,
    config::Layer,
    tensors::{self, Role, Tensors},
};

type Result<T> = std::result::Result<T, ModelError>;

/// A graph being built: the configuration, the weights, and the layer at hand.
///
/// Order matters to devices. Linear operations of one input stand next to each other, so that a device can run them
/// as one.
pub(crate) struct Net<'a> {
    pub(crate) config: &'a Config,
    pub(crate) graph: GraphBuilder,
    pub(crate) tensors: Tensors<'a>,
    options: BuildOptions,
    layer: Option<usize>,
    embedding: Option<WeightId>,
}

impl<'a> Net<'a> {
    pub(crate) fn new(config: &'a Config, tensors: Tensors<'a>, options: BuildOptions) -> Net<'a> {
        Net { config, graph: GraphBuilder::new(), tensors, options, layer: None, embedding: None }
    }

    /// Token embedding, times `scale`: `[T, hidden]`.
    pub(crate) fn embed(&mut self, scale: f32) -> Result<ValueId> {
        self.graph.scope(Part::Embedding, None);
        let name = self.tensors.name(Role::TokenEmbedding, None, "weight");
        let table = self.tensors.matrix(name, self.config.vocab, self.config.hidden)?;
        let table = self.graph.weight(table)?;
        self.embedding = Some(table);
        let x = self.graph.embed(table, scale)?;
        self.tap(0, x);
        Ok(x)
    }

    /// Begins the attention of a layer.
    pub(crate) fn attention(&mut self, layer: usize) {
        self.layer = Some(layer);
        self.graph.scope(Part::Attention, self.layer);
    }

    /// Begins the feed-forward block of the layer.
    pub(crate) fn feed_forward(&mut self) {
        self.graph.scope(Part::FeedForward, self.layer);
    }

    /// RMS norm over the row.
    pub(crate) fn norm(&mut self, x: ValueId, role: Role) -> Result<ValueId> {
        self.norm_runs(x, role, self.config.hidden)
    }

    /// RMS norm over each head.
    pub(crate) fn head_norm(&mut self, x: ValueId, role: Role) -> Result<ValueId> {
        self.norm_runs(x, role, self.config.head_dim)
    }

    fn norm_runs(&mut self, x: ValueId, role: Role, len: usize) -> Result<ValueId> {
        let name = self.tensors.name(role, self.layer, "weight");
        let weight = self.graph.weight(self.tensors.vector(name, len)?)?;
        Ok(self.graph.rms_norm(x, Some(weight), len, self.config.eps, self.config.norm_offset)?)
    }

    fn linear(&mut self, x: ValueId, role: Role, rows: usize, bias: bool) -> Result<ValueId> {
        let name = self.tensors.name(role, self.layer, "weight");
        let matrix = self.tensors.matrix(name, Some(rows), self.graph.width(x))?;
        let weight = self.graph.weight(matrix)?;
        if self.options.inputs {
            self.graph.tap(tensors::gguf_name(role, self.layer), x);
        }
        let mut vector = None;
        if bias {
            let name = self.tensors.name(role, self.layer, "bias");
            vector = Some(self.graph.weight(self.tensors.vector(name, rows)?)?);
        }
        Ok(self.graph.linear(x, weight, vector)?)
    }

    /// Queries `[T, heads * head_dim]`, keys and values `[T, kv_heads * head_dim]`.
    pub(crate) fn qkv(&mut self, h: ValueId) -> Result<[ValueId; 3]> {
        let Config { heads, head_dim, biases, .. } = *self.config;
        let kv_width = self.layer().kv_heads * head_dim;
        Ok([
            self.linear(h, Role::Query, heads * head_dim, biases.qkv)?,
            self.linear(h, Role::Key, kv_width, biases.qkv)?,
            self.linear(h, Role::Value, kv_width, biases.qkv)?,
        ])
    }

    /// Rotary embedding of the layer's kind.
    pub(crate) fn rope(&mut self, x: ValueId) -> Result<ValueId> {
        let config = self.config;
        let table = if self.layer().sliding { &config.rope_sliding } else { &config.rope };
        Ok(self.graph.rope(x, config.head_dim, table.clone())?)
    }

    /// Stores keys and values, attends, and projects back: `[T, hidden]`.
    pub(crate) fn attend(&mut self, [q, k, v]: [ValueId; 3]) -> Result<ValueId> {
        let config = self.config;
        let &Layer { kv_heads, window, .. } = self.layer();
        let cache = self.graph.cache(kv_heads, config.head_dim, window)?;
        self.graph.kv_write(cache, k, v)?;
        let h = self.graph.attention(cache, q, config.attention_scale, config.attention_cap)?;
        self.linear(h, Role::AttentionOutput, config.hidden, config.biases.output)
    }

    /// `down(act(gate(h)) * up(h))` (Shazeer 2020, arXiv:2002.05202).
    pub(crate) fn gated(&mut self, h: ValueId, kind: Activation) -> Result<ValueId> {
        let width = self.layer().feed_forward;
        let bias = self.config.biases.feed_forward;
        let gate = self.linear(h, Role::Gate, width, bias)?;
        let up = self.linear(h, Role::Up, width, bias)?;
        let gate = self.graph.activate(gate, kind)?;
        let h = self.graph.mul(gate, up)?;
        self.linear(h, Role::Down, self.config.hidden, bias)
    }

    /// The residual sum.
    pub(crate) fn add(&mut self, x: ValueId, h: ValueId) -> Result<ValueId> {
        Ok(self.graph.add(x, h)?)
    }

    /// Ends a layer. The last layer's output is tapped after the final norm, as transformers reports it.
    pub(crate) fn end_layer(&mut self, x: ValueId) {
        let done = self.layer.take().map_or(0, |layer| layer + 1);
        if done < self.config.layers.len() {
            self.tap(done, x);
        }
    }

    /// The wanted rows, normed and projected onto the vocabulary: logits `[R, vocab]`.
    pub(crate) fn head(&mut self, x: ValueId) -> Result<ValueId> {
        self.graph.scope(Part::Head, None);
        // Before the norm, so that only wanted rows are normed and projected.
        let x = self.graph.select_outputs(x)?;
        let x = self.norm(x, Role::OutputNorm)?;
        self.tap(self.config.layers.len(), x);
        self.graph.tap(crate::HIDDEN, x);
        let weight = match self.embedding {
            Some(embedding) if self.config.tied => embedding,
            _ => {
                let matrix = self.tensors.matrix(self.tensors.head_name(), self.config.vocab, self.config.hidden)?;
                self.graph.weight(matrix)?
            }
        };
        if self.options.inputs {
            // A tied head is the embedding, which is what a file has.
            let name = if self.config.tied { "token_embd.weight" } else { "output.weight" };
            self.graph.tap(name, x);
        }
        let logits = self.graph.linear(x, weight, None)?;
        match self.config.logit_cap {
            Some(cap) => Ok(self.graph.soft_cap(logits, cap)?),
            None => Ok(logits),
        }
    }

    /// The layer at hand. Families call the blocks of a layer between `attention` and `end_layer`.
    fn layer(&self) -> &'a Layer {
        &self.config.layers[self.layer.expect("inside a layer")]
    }

    fn tap(&mut self, index: usize, value: ValueId) {
        if self.options.taps {
            self.graph.tap(format!("hidden.{index}"), value);
        }
    }
}
