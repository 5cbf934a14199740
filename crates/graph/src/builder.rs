//! Builds a graph and checks every shape on the way.

use std::sync::Arc;

use crate::{
    graph::{Cache, CacheId, Graph, Node, Part, Rows, Value, ValueId, Weight, WeightId},
    op::{Activation, Op},
    rope::RopeTable,
};

/// Why a graph could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Shapes that do not belong together.
    #[error("{op}{at}: {detail}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The layer, as ` in layer N`, or nothing.
        at: String,
        /// What does not fit, with the tensor's name where one is at fault.
        detail: String,
    },
    /// A weight whose bytes do not make its shape.
    #[error("tensor {name}: {detail}")]
    Weight {
        /// The tensor.
        name: String,
        /// What does not fit.
        detail: String,
    },
}

/// Builds a [`Graph`] node by node. Nodes run in the order they were added; [`GraphBuilder::scope`] tells which part
/// and layer the next ones belong to.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    values: Vec<Value>,
    weights: Vec<Weight>,
    caches: Vec<Cache>,
    written: Vec<bool>,
    windows: Vec<Option<usize>>,
    nodes: Vec<Node>,
    taps: Vec<(String, ValueId)>,
    part: Option<Part>,
    layer: Option<u32>,
    vocab_in: usize,
}

type Result<T> = std::result::Result<T, GraphError>;

impl GraphBuilder {
    /// An empty graph.
    pub fn new() -> GraphBuilder {
        GraphBuilder::default()
    }

    /// The part and layer of the nodes that follow.
    pub fn scope(&mut self, part: Part, layer: Option<usize>) {
        self.part = Some(part);
        self.layer = layer.map(|l| l as u32);
    }

    /// Adds a weight.
    ///
    /// # Errors
    /// Where its bytes do not make its shape, or its type holds no weights.
    pub fn weight(&mut self, weight: Weight) -> Result<WeightId> {
        let fail = |detail: String| GraphError::Weight { name: weight.name.clone(), detail };
        if !weight.dtype.is_weight() {
            return Err(fail(format!("{} is not a weight type", weight.dtype)));
        }
        if weight.rows == 0 || weight.cols == 0 {
            return Err(fail(format!("empty shape {} x {}", weight.rows, weight.cols)));
        }
        let row_bytes = weight.dtype.row_bytes(weight.cols).ok_or_else(|| {
            fail(format!("rows of {} elements are not whole blocks of {}", weight.cols, weight.dtype))
        })?;
        if row_bytes.checked_mul(weight.rows) != Some(weight.data.len()) {
            return Err(fail(format!(
                "{} bytes do not make {} x {} of {}",
                weight.data.len(),
                weight.rows,
                weight.cols,
                weight.dtype
            )));
        }
        self.weights.push(weight);
        Ok(WeightId(self.weights.len() as u32 - 1))
    }

    /// Adds a KV cache of `kv_heads` heads of `head_dim` elements; with a window a query sees that many tokens, itself
    /// included.
    ///
    /// # Errors
    /// Where it has no heads, heads of no elements or a window of no tokens.
    pub fn cache(&mut self, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Result<CacheId> {
        if kv_heads.checked_mul(head_dim).is_none_or(|width| width == 0) {
            return Err(self.shape_error("cache", format!("{kv_heads} heads of {head_dim} elements")));
        }
        if window == Some(0) {
            return Err(self.shape_error("cache", "a window of 0 tokens".to_owned()));
        }
        let group = self.windows.iter().position(|w| *w == window).unwrap_or_else(|| {
            self.windows.push(window);
            self.windows.len() - 1
        });
        self.caches.push(Cache { kv_heads, head_dim, window, group });
        self.written.push(false);
        Ok(CacheId(self.caches.len() as u32 - 1))
    }

    /// Elements a row of a value.
    pub fn width(&self, value: ValueId) -> usize {
        self.values[value.index()].width
    }

    /// Gives a value a name under which tests read it after a step.
    pub fn tap(&mut self, name: impl Into<String>, value: ValueId) {
        self.taps.push((name.into(), value));
    }

    /// [`Op::Embed`]: the step's ids to `[T, cols]`.
    ///
    /// # Errors
    /// Where another table was used before: a graph has one input vocabulary.
    pub fn embed(&mut self, table: WeightId, scale: f32) -> Result<ValueId> {
        let (rows, cols) = self.shape(table);
        if self.vocab_in != 0 && self.vocab_in != rows {
            return Err(self.shape_error("embed", format!("{rows} entries after a table of {}", self.vocab_in)));
        }
        self.vocab_in = rows;
        Ok(self.push(Op::Embed { table, scale }, Rows::Tokens, cols))
    }

    /// [`Op::Linear`].
    ///
    /// # Errors
    /// Where the widths differ.
    pub fn linear(&mut self, x: ValueId, weight: WeightId, bias: Option<WeightId>) -> Result<ValueId> {
        let (rows, cols) = self.shape(weight);
        if cols != self.width(x) {
            let name = &self.weights[weight.index()].name;
            return Err(self.shape_error("linear", format!("{name} takes {cols} features, not {}", self.width(x))));
        }
        if let Some(bias) = bias {
            self.check_vector("linear", bias, rows)?;
        }
        Ok(self.push(Op::Linear { x, weight, bias }, self.values[x.index()].rows, rows))
    }

    /// [`Op::RmsNorm`] over runs of `group` elements.
    ///
    /// # Errors
    /// Where `group` does not divide the width or the weight has another length.
    pub fn rms_norm(
        &mut self,
        x: ValueId,
        weight: Option<WeightId>,
        group: usize,
        eps: f32,
        offset: f32,
    ) -> Result<ValueId> {
        self.check_divides("rms_norm", x, group)?;
        if let Some(weight) = weight {
            self.check_vector("rms_norm", weight, group)?;
        }
        Ok(self.same_shape(Op::RmsNorm { x, weight, group, eps, offset }, x))
    }

    /// [`Op::Rope`].
    ///
    /// # Errors
    /// Where heads do not divide the width, the table turns more elements than a head has, or the rows are not the
    /// tokens, which have the positions.
    pub fn rope(&mut self, x: ValueId, head_dim: usize, table: Arc<RopeTable>) -> Result<ValueId> {
        self.check_tokens("rope", x)?;
        self.check_divides("rope", x, head_dim)?;
        if table.rotary_dim() > head_dim {
            return Err(self.shape_error("rope", format!("turns {} of {head_dim} elements", table.rotary_dim())));
        }
        Ok(self.same_shape(Op::Rope { x, head_dim, table }, x))
    }

    /// [`Op::KvWrite`].
    ///
    /// # Errors
    /// Where keys or values do not have the cache's width or a row for each token, or the cache is written twice.
    pub fn kv_write(&mut self, cache: CacheId, k: ValueId, v: ValueId) -> Result<()> {
        let Cache { kv_heads, head_dim, .. } = self.caches[cache.index()];
        for value in [k, v] {
            self.check_tokens("kv_write", value)?;
            if self.width(value) != kv_heads * head_dim {
                let detail = format!("{kv_heads} heads of {head_dim} do not make {}", self.width(value));
                return Err(self.shape_error("kv_write", detail));
            }
        }
        if std::mem::replace(&mut self.written[cache.index()], true) {
            return Err(self.shape_error("kv_write", "the cache is written twice".to_owned()));
        }
        self.push_node(Op::KvWrite { cache, k, v }, None);
        Ok(())
    }

    /// [`Op::Attention`]: `[T, heads * head_dim]` to the same.
    ///
    /// # Errors
    /// Where query heads are no multiple of the KV heads, the rows are not the tokens, nothing was written to the cache
    /// before, `scale` is not finite or `softcap` is not a positive number.
    pub fn attention(&mut self, cache: CacheId, q: ValueId, scale: f32, softcap: Option<f32>) -> Result<ValueId> {
        let Cache { kv_heads, head_dim, .. } = self.caches[cache.index()];
        let width = self.width(q);
        self.check_tokens("attention", q)?;
        if width == 0 || !width.is_multiple_of(kv_heads * head_dim) {
            let detail = format!("width {width} is no multiple of {kv_heads} KV heads of {head_dim}");
            return Err(self.shape_error("attention", detail));
        }
        if !self.written[cache.index()] {
            return Err(self.shape_error("attention", "reads a cache that nothing wrote".to_owned()));
        }
        if !scale.is_finite() {
            return Err(self.shape_error("attention", format!("factor {scale} on the scores")));
        }
        if let Some(cap) = softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(self.shape_error("attention", format!("bound {cap} of the scores is not a positive number")));
        }
        Ok(self.same_shape(Op::Attention { cache, q, scale, softcap }, q))
    }

    /// [`Op::Add`].
    ///
    /// # Errors
    /// Where the shapes differ.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.check_same("add", a, b)?;
        Ok(self.same_shape(Op::Add { a, b }, a))
    }

    /// [`Op::Mul`].
    ///
    /// # Errors
    /// Where the shapes differ.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.check_same("mul", a, b)?;
        Ok(self.same_shape(Op::Mul { a, b }, a))
    }

    /// [`Op::Activate`].
    ///
    /// # Errors
    /// None today; a `Result` as all operations.
    pub fn activate(&mut self, x: ValueId, kind: Activation) -> Result<ValueId> {
        Ok(self.same_shape(Op::Activate { x, kind }, x))
    }

    /// [`Op::Scale`].
    ///
    /// # Errors
    /// Where the factor is not finite.
    pub fn scale(&mut self, x: ValueId, factor: f32) -> Result<ValueId> {
        if !factor.is_finite() {
            return Err(self.shape_error("scale", format!("factor {factor}")));
        }
        Ok(self.same_shape(Op::Scale { x, factor }, x))
    }

    /// [`Op::SoftCap`].
    ///
    /// # Errors
    /// Where the bound is not a positive number.
    pub fn soft_cap(&mut self, x: ValueId, cap: f32) -> Result<ValueId> {
        if !(cap.is_finite() && cap > 0.0) {
            return Err(self.shape_error("soft_cap", format!("bound {cap} is not a positive number")));
        }
        Ok(self.same_shape(Op::SoftCap { x, cap }, x))
    }

    /// [`Op::SelectOutputs`]: `[T, width]` to `[R, width]`.
    ///
    /// # Errors
    /// Where the rows were selected before.
    pub fn select_outputs(&mut self, x: ValueId) -> Result<ValueId> {
        let Value { rows, width } = self.values[x.index()];
        if rows != Rows::Tokens {
            return Err(self.shape_error("select_outputs", "the rows are selected already".to_owned()));
        }
        Ok(self.push(Op::SelectOutputs { x }, Rows::Outputs, width))
    }

    /// The finished graph.
    ///
    /// # Errors
    /// Where `logits` is not a matrix of wanted rows.
    pub fn finish(self, logits: ValueId) -> Result<Graph> {
        if self.values[logits.index()].rows != Rows::Outputs {
            return Err(self.shape_error("finish", "the logits must be rows of select_outputs".to_owned()));
        }
        Ok(Graph {
            values: self.values,
            weights: self.weights,
            caches: self.caches,
            windows: self.windows,
            nodes: self.nodes,
            logits,
            taps: self.taps,
            vocab_in: self.vocab_in,
        })
    }

    fn shape(&self, weight: WeightId) -> (usize, usize) {
        let weight = &self.weights[weight.index()];
        (weight.rows, weight.cols)
    }

    fn push(&mut self, op: Op, rows: Rows, width: usize) -> ValueId {
        let value = ValueId(self.values.len() as u32);
        self.values.push(Value { rows, width });
        self.push_node(op, Some(value));
        value
    }

    fn push_node(&mut self, op: Op, output: Option<ValueId>) {
        let part = self.part.unwrap_or(Part::Head);
        self.nodes.push(Node { op, output, part, layer: self.layer });
    }

    fn same_shape(&mut self, op: Op, like: ValueId) -> ValueId {
        let Value { rows, width } = self.values[like.index()];
        self.push(op, rows, width)
    }

    fn shape_error(&self, op: &'static str, detail: String) -> GraphError {
        let at = self.layer.map_or(String::new(), |layer| format!(" in layer {layer}"));
        GraphError::Shape { op, at, detail }
    }

    fn check_same(&self, op: &'static str, a: ValueId, b: ValueId) -> Result<()> {
        let (a, b) = (&self.values[a.index()], &self.values[b.index()]);
        if a.width == b.width && a.rows == b.rows {
            return Ok(());
        }
        Err(self.shape_error(op, format!("{:?} x {} and {:?} x {}", a.rows, a.width, b.rows, b.width)))
    }

    /// Positions and places in the cache belong to the tokens of a step, not to its outputs.
    fn check_tokens(&self, op: &'static str, x: ValueId) -> Result<()> {
        if self.values[x.index()].rows == Rows::Tokens {
            return Ok(());
        }
        Err(self.shape_error(op, "takes a row for each token, not selected outputs".to_owned()))
    }

    fn check_divides(&self, op: &'static str, x: ValueId, group: usize) -> Result<()> {
        let width = self.width(x);
        if group != 0 && width.is_multiple_of(group) {
            return Ok(());
        }
        Err(self.shape_error(op, format!("groups of {group} do not divide a width of {width}")))
    }

    fn check_vector(&self, op: &'static str, weight: WeightId, len: usize) -> Result<()> {
        let weight = &self.weights[weight.index()];
        if weight.rows == 1 && weight.cols == len {
            return Ok(());
        }
        let detail = format!("{} has shape {} x {}, not {len}", weight.name, weight.rows, weight.cols);
        Err(self.shape_error(op, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_shapes_are_refused_with_the_tensor_named() {
        let mut b = GraphBuilder::new();
        let table = b.weight(Weight::from_f32("table", 4, 2, &[0.0; 8])).unwrap();
        let wide = b.weight(Weight::from_f32("wide", 2, 3, &[0.0; 6])).unwrap();
        let x = b.embed(table, 1.0).unwrap();
        b.scope(Part::Attention, Some(3));
        let error = b.linear(x, wide, None).unwrap_err().to_string();
        assert!(error.contains("wide") && error.contains("layer 3"), "{error}");
        assert!(b.rms_norm(x, None, 3, 1e-6, 0.0).is_err());
        let cache = b.cache(1, 2, None).unwrap();
        assert!(b.attention(cache, x, 1.0, None).is_err(), "reads before a write");
        b.kv_write(cache, x, x).unwrap();
        assert!(b.kv_write(cache, x, x).is_err(), "written twice");
        assert!(b.attention(cache, x, 1.0, None).is_ok());
        assert!(b.finish(x).is_err(), "logits need select_outputs");
    }

    #[test]
    fn caches_without_heads_elements_or_window_are_refused() {
        let mut b = GraphBuilder::new();
        for (kv_heads, head_dim, window) in [(0, 4, None), (4, 0, None), (usize::MAX, 2, None), (1, 4, Some(0))] {
            assert!(b.cache(kv_heads, head_dim, window).is_err(), "{kv_heads} x {head_dim}, window {window:?}");
        }
        assert!(b.cache(1, 4, Some(1)).is_ok());
    }

    #[test]
    fn scores_need_a_finite_factor_and_a_positive_bound() {
        let mut b = GraphBuilder::new();
        let table = b.weight(Weight::from_f32("table", 4, 2, &[0.0; 8])).unwrap();
        let x = b.embed(table, 1.0).unwrap();
        let cache = b.cache(1, 2, None).unwrap();
        b.kv_write(cache, x, x).unwrap();
        for (scale, softcap, is_good) in [
            (1.0, None, true),
            (-0.5, Some(30.0), true),
            (f32::NAN, None, false),
            (f32::INFINITY, None, false),
            (1.0, Some(0.0), false),
            (1.0, Some(-1.0), false),
            (1.0, Some(f32::INFINITY), false),
            (1.0, Some(f32::NAN), false),
        ] {
            assert_eq!(b.attention(cache, x, scale, softcap).is_ok(), is_good, "{scale}, {softcap:?}");
        }
    }

    #[test]
    fn positions_and_caches_take_rows_of_tokens() {
        let mut b = GraphBuilder::new();
        let table = b.weight(Weight::from_f32("table", 4, 2, &[0.0; 8])).unwrap();
        let x = b.embed(table, 1.0).unwrap();
        let selected = b.select_outputs(x).unwrap();
        let rope = crate::RopeTable::new(2, 1e4, &crate::RopeScaling::None, crate::RopePairs::Halves).unwrap();
        assert!(b.rope(selected, 2, Arc::new(rope)).is_err());
        let cache = b.cache(1, 2, None).unwrap();
        assert!(b.kv_write(cache, selected, x).is_err());
        assert!(b.kv_write(cache, x, selected).is_err());
        b.kv_write(cache, x, x).unwrap();
        assert!(b.attention(cache, selected, 1.0, None).is_err());
    }

    #[test]
    fn weights_must_be_whole_blocks_of_the_right_length() {
        let weight = |cols, bytes| Weight {
            name: "w".into(),
            dtype: tensor::DType::Q4_0,
            rows: 2,
            cols,
            data: vec![0u8; bytes].into(),
        };
        let mut b = GraphBuilder::new();
        assert!(b.weight(weight(32, 36)).is_ok());
        assert!(b.weight(weight(32, 35)).is_err());
        assert!(b.weight(weight(33, 36)).is_err());
    }
}
