//! The graph of a step: values, weights, caches and nodes in the order they run.

use tensor::{Bytes, DType};

use crate::op::Op;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(crate) u32);
        impl $name {
            /// The position in the graph's list of its kind.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
id!(
    /// Names a value of a graph.
    ValueId
);
id!(
    /// Names a weight of a graph.
    WeightId
);
id!(
    /// Names a KV cache of a graph: one a layer that stores keys and values.
    CacheId
);
id!(
    /// Names a node of a graph; nodes run in this order.
    NodeId
);

/// What a row of a value stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// One row for each token of the step.
    Tokens,
    /// One row for each token whose logits are wanted.
    Outputs,
}

/// A matrix of `f32` that one node makes and others read.
#[derive(Clone, Debug)]
pub struct Value {
    /// What its rows stand for: their number is known when a step runs.
    pub rows: Rows,
    /// Elements a row.
    pub width: usize,
}

/// A weight as the file holds it: `rows` x `cols`, row-major, rows made of whole blocks. A vector has one row.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The tensor's name in the file, for messages.
    pub name: String,
    /// Element or block type.
    pub dtype: DType,
    /// Output features (entries of a table).
    pub rows: usize,
    /// Input features (elements a row).
    pub cols: usize,
    /// The bytes, most often a slice of the mapped file.
    pub data: Bytes,
}

impl Weight {
    /// A weight from `f32` values; for tests and for small computed tables.
    pub fn from_f32(name: &str, rows: usize, cols: usize, values: &[f32]) -> Weight {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        Weight { name: name.to_owned(), dtype: DType::F32, rows, cols, data: Bytes::from(data) }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols).expect("checked when the weight joined the graph")
    }

    /// The bytes of row `row`.
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = self.row_bytes();
        &self.data[row * bytes..(row + 1) * bytes]
    }

    /// Decodes row `row` into `out` (`cols` elements).
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        tensor::blocks::dequantize(self.dtype, self.row(row), out)
            .expect("type and lengths were checked when the weight joined the graph");
    }

    /// Decodes the whole weight.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, values) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            self.decode_row(row, values);
        }
        out
    }
}

/// The keys and values of one layer. Where it lies is the device's affair; how it is cut into blocks is in
/// [`crate::Step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Heads that store keys and values.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Tokens a query looks back, itself included; `None` where it sees all.
    pub window: Option<usize>,
    /// Index into [`Graph::windows`]: caches of one group share a block table.
    pub group: usize,
}

impl Cache {
    /// Bytes that the keys and values of one token take.
    pub fn token_bytes(&self, dtype: crate::KvType) -> u64 {
        (self.kv_heads * 2 * dtype.head_bytes(self.head_dim)) as u64
    }
}

/// The part of a model that a node belongs to: what a person names when placing work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// Attention with its norms and projections.
    Attention,
    /// Feed-forward with its norms.
    FeedForward,
    /// Final norm and output head.
    Head,
}

impl Part {
    /// Every part, in the order a token passes them.
    pub const ALL: [Part; 4] = [Part::Embedding, Part::Attention, Part::FeedForward, Part::Head];

    /// The name a person types.
    pub fn name(self) -> &'static str {
        match self {
            Part::Embedding => "embedding",
            Part::Attention => "attention",
            Part::FeedForward => "feed-forward",
            Part::Head => "head",
        }
    }
}

/// One operation of the graph.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does, with its inputs.
    pub op: Op,
    /// The value it makes; `None` for [`Op::KvWrite`], which only stores.
    pub output: Option<ValueId>,
    /// The part of the model it belongs to.
    pub part: Part,
    /// The layer it belongs to; `None` outside the layers.
    pub layer: Option<u32>,
}

/// A checked graph: see [`crate::GraphBuilder`].
#[derive(Debug)]
pub struct Graph {
    pub(crate) values: Vec<Value>,
    pub(crate) weights: Vec<Weight>,
    pub(crate) caches: Vec<Cache>,
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) logits: ValueId,
    pub(crate) taps: Vec<(String, ValueId)>,
    pub(crate) vocab_in: usize,
}

impl Graph {
    /// All nodes, in the order they run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
    /// All weights.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }
    /// All caches.
    pub fn caches(&self) -> &[Cache] {
        &self.caches
    }
    /// All values.
    pub fn values(&self) -> &[Value] {
        &self.values
    }
    /// The attention windows that occur; a cache's `group` indexes this list. A sequence brings one block table a
    /// group.
    pub fn windows(&self) -> &[Option<usize>] {
        &self.windows
    }
    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }
    /// A weight.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.index()]
    }
    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }
    /// A cache.
    pub fn cache(&self, id: CacheId) -> &Cache {
        &self.caches[id.index()]
    }
    /// The value that holds the logits, one row a wanted output.
    pub fn logits(&self) -> ValueId {
        self.logits
    }
    /// Values a test wants to see, by name.
    pub fn taps(&self) -> &[(String, ValueId)] {
        &self.taps
    }
    /// Entries of the output vocabulary.
    pub fn vocab(&self) -> usize {
        self.value(self.logits).width
    }
    /// Entries of the embedding table: ids must lie below.
    pub fn vocab_in(&self) -> usize {
        self.vocab_in
    }
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |l| l as usize + 1)
    }
    /// Ids of all nodes, in the order they run.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }
    /// Whether a value leaves the graph: the logits and the taps.
    pub fn is_output(&self, value: ValueId) -> bool {
        value == self.logits || self.taps.iter().any(|(_, tap)| *tap == value)
    }
    /// The nodes that read a value, in order.
    pub fn readers(&self, value: ValueId) -> impl Iterator<Item = NodeId> + '_ {
        self.node_ids().filter(move |id| self.node(*id).op.inputs().contains(&value))
    }
}
