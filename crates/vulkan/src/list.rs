//! What the operations of a stage become for a step of given size: dispatches.

use graph::{Arithmetic, KV_BLOCK_TOKENS, KvType, Rows};

use crate::{
    capabilities::{Capabilities, Kind},
    kernels::{self, Dispatch, elementwise, form},
    operation::{AttentionAt, HeadPartAt, HeadsAt, Matrix, NormAt, Operation},
    pack::Format,
    products::{MATRIX_SHARED_BYTES, Method},
    shaders::Shader,
    tuning::Tuning,
};

/// The size of a step, as far as dispatches depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    pub(crate) stage: usize,
    pub(crate) tokens: u32,
    pub(crate) outputs: u32,
    /// Tiles of each list.
    pub(crate) tiles: Vec<u32>,
    /// Whether a sequence has more than one row.
    pub(crate) many: bool,
    /// Tokens of the longest sequence, rounded up to a power of two.
    pub(crate) longest: u32,
    /// Largest logits that are found of each row; 0 where all of them leave.
    pub(crate) top: u32,
}

/// What dispatches are made with.
pub(crate) struct Lister<'a> {
    pub(crate) capabilities: &'a Capabilities,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) tuning: &'a Tuning,
    pub(crate) bucket: &'a Bucket,
    pub(crate) addresses: &'a Addresses,
    pub(crate) list: Vec<Dispatch>,
    /// The value that lies as bytes in [`Addresses::made`], and as floats nowhere.
    pub(crate) made: Option<Matrix>,
    /// The value that lies as fragments in [`Addresses::quants`], and as floats nowhere.
    pub(crate) halved: Option<Matrix>,
}

/// Memory that belongs to the program and not to one operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) positions: u64,
    pub(crate) outputs: u64,
    pub(crate) ids: u64,
    pub(crate) places: Vec<u64>,
    pub(crate) tiles: Vec<u64>,
    pub(crate) tables: u64,
    /// Prepared inputs of products: bytes or halves, and their scales.
    pub(crate) quants: u64,
    pub(crate) scales: u64,
    /// The input of a product where the kernel before made it: bytes, and their scales behind them.
    pub(crate) made: u64,
    /// Shares of attention, behind counts of those that are done.
    pub(crate) partial: u64,
    /// The largest logits of each row, and behind them those of parts of rows.
    pub(crate) top: u64,
}

/// Invocations of the workgroups of attention: keys of a chunk.
pub(crate) const ATTENTION_WIDTH: u32 = 128;

/// Queries of a tile of attention, at most: more share what is read of keys, and leave fewer workgroups a place.
const TILE_QUERIES: u32 = 4;

/// The same of decoding, where one tile holds the heads of one row. Software compiles kernels at the speed of a
/// processor, and each query is unrolled. A card's cache serves keys to several workgroups, which are better small.
fn decode_queries(capabilities: &Capabilities) -> u32 {
    match capabilities.kind {
        Kind::Integrated => 8,
        Kind::Discrete | Kind::Virtual | Kind::Software => 2,
    }
}

/// Query heads of a step up to which those of a card have a workgroup each.
const LONE_QUERIES: u32 = 64;

/// Subgroups of a workgroup of attention on matrix units.
const MATRIX_SUBGROUPS: u32 = 4;

/// How attention over a cache of this kind, with more than one row of a sequence, is computed on matrix units: matrices
/// of 16 queries that a subgroup has; nothing where it is not.
pub(crate) fn attention_matrices(
    capabilities: &Capabilities,
    arithmetic: Arithmetic,
    head_dim: u32,
    kv: KvType,
) -> Option<u32> {
    let shape = capabilities.cooperative_matrix?;
    let fits = arithmetic == Arithmetic::Fast
        && kv != KvType::F32
        && shape.is_square()
        && head_dim.is_multiple_of(16)
        && capabilities.subgroup >= 16
        && capabilities.shared_bytes >= MATRIX_SHARED_BYTES
        && capabilities.workgroup >= MATRIX_SUBGROUPS * capabilities.subgroup;
    // Sums and queries stay in registers: of heads of 256, one matrix of each.
    fits.then_some(if head_dim <= 128 { 2 } else { 1 })
}

/// Queries of a tile of attention at most, where `matrices` are those of [`attention_matrices`].
fn tile_queries(matrices: Option<u32>) -> u32 {
    matrices.map_or(TILE_QUERIES, |matrices| MATRIX_SUBGROUPS * 16 * matrices)
}

/// Rows of a sequence in a tile of attention, where KV heads are shared by `group` query heads.
pub(crate) fn tile_rows(matrices: Option<u32>, group: usize) -> usize {
    (tile_queries(matrices) as usize / group).max(1)
}

/// Shared memory that heads and attention in one kernel take, at most.
const ATTEND_SHARED_BYTES: u32 = 24 << 10;

/// Bytes of the counts before shares of attention, one a tile: tiles that are divided are fewer than [`full`].
const PARTIAL_BEGIN: u64 = 4096;

/// Workgroups that fill a device: attention divides keys up to this number.
pub(crate) fn full(capabilities: &Capabilities) -> u32 {
    match capabilities.kind {
        Kind::Discrete | Kind::Virtual => 512,
        Kind::Integrated => 48,
        Kind::Software => 16,
    }
}

pub(crate) fn bits(value: bool) -> u32 {
    u32::from(value)
}

impl Lister<'_> {
    /// Appends the dispatches of operations.
    pub(crate) fn add(&mut self, operations: &[Operation]) {
        for (i, operation) in operations.iter().enumerate() {
            let next = operations.get(i + 1);
            match operation {
                Operation::Product(product) => self.product(product, next),
                Operation::Heads(heads) => self.heads(heads),
                Operation::Attention(attention) => self.attention(attention),
                Operation::Attend(heads, attention) if self.attends(attention) => {
                    self.attend(heads, attention, next);
                }
                Operation::Attend(heads, attention) => {
                    self.heads(heads);
                    self.attention(attention);
                }
                Operation::Norm { x, norm, group, out } => self.norm(x, *norm, *group, out),
                Operation::Element { op, kind, factor, a, b, out } => self.element(*op, *kind, *factor, a, *b, out),
                Operation::Embed { weight, format, rows, factor, out } => {
                    self.embed(*weight, *format, *rows, *factor, out);
                }
                Operation::Select { x, out } => self.select(x, out),
            }
        }
    }

    pub(crate) fn count(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Tokens => self.bucket.tokens,
            Rows::Outputs => self.bucket.outputs,
        }
    }

    pub(crate) fn range(&self, matrix: &Matrix) -> std::ops::Range<u64> {
        let bytes = u64::from(self.count(matrix.rows)) * u64::from(matrix.width) * 4;
        matrix.address..matrix.address + bytes
    }

    pub(crate) fn push(&mut self, mut dispatch: Dispatch, reads: &[&Matrix], writes: &[&Matrix]) {
        dispatch.reads.extend(reads.iter().map(|matrix| self.range(matrix)));
        dispatch.writes.extend(writes.iter().map(|matrix| self.range(matrix)));
        if dispatch.bytes == 0 {
            dispatch.bytes = dispatch.reads.iter().chain(&dispatch.writes).map(|range| range.end - range.start).sum();
        }
        if dispatch.groups.iter().all(|groups| *groups > 0) {
            self.list.push(dispatch);
        }
    }

    fn norm(&mut self, x: &Matrix, norm: NormAt, group: u32, out: &Matrix) {
        let rows = self.count(x.rows) * (x.width / group);
        let push = kernels::Prepare {
            x: x.address,
            w2: norm.weight,
            floats: out.address,
            width: group,
            eps2: norm.eps,
            rows,
            ..Default::default()
        };
        let (invocations, each) = row_width(group, self.capabilities);
        let ragged = bits(!group.is_multiple_of(4));
        let constants = vec![(0, invocations), (1, 0), (2, 0), (3, 1), (4, form::FLOATS), (5, each), (6, ragged)];
        let mut dispatch = Dispatch::new(Shader::Prepare, constants, &push, rows_of_groups(rows));
        dispatch.label = format!("norm {group}");
        self.push(dispatch, &[x], &[out]);
    }

    pub(crate) fn element(&mut self, op: u32, kind: u32, factor: f32, a: &Matrix, b: Option<Matrix>, out: &Matrix) {
        let count = self.count(out.rows) * out.width;
        let push = kernels::Elementwise {
            a: a.address,
            b: b.map_or(0, |b| b.address),
            result: out.address,
            count,
            width: out.width,
            factor,
            padding: 0,
        };
        let groups = [count.div_ceil(256).min(16384), 1, 1];
        let mut dispatch = Dispatch::new(Shader::Elementwise, vec![(0, op), (1, kind)], &push, groups);
        dispatch.label = format!("elementwise {op}");
        let mut reads = vec![a];
        reads.extend(b.as_ref());
        self.push(dispatch, &reads, &[out]);
    }

    fn embed(&mut self, weight: u64, format: Format, rows: u32, factor: f32, out: &Matrix) {
        let (count, ids) = (self.count(out.rows), self.addresses.ids);
        let push = kernels::Embed { weight, ids, result: out.address, rows, cols: out.width, factor, count };
        let dispatch = Dispatch::new(Shader::Embed, vec![(0, format as u32)], &push, rows_of_groups(count));
        self.push(dispatch, &[], &[out]);
    }

    fn select(&mut self, x: &Matrix, out: &Matrix) {
        let rows = Matrix { address: self.addresses.outputs, width: 1, rows: Rows::Outputs };
        self.element(elementwise::SELECT, 0, 0.0, x, Some(rows), out);
        // It reads rows of the step, whatever their number.
        let range = self.range(x);
        if let Some(last) = self.list.last_mut()
            && self.bucket.outputs > 0
        {
            last.reads.push(range);
        }
    }

    fn heads(&mut self, heads: &HeadsAt) {
        let mut push = kernels::Heads {
            frequencies: heads.rope.map_or(0, |rope| rope.frequencies),
            positions: self.addresses.positions,
            places: self.addresses.places.get(heads.group).copied().unwrap_or(0),
            eps: heads.eps,
            magnitude: heads.rope.map_or(1.0, |rope| rope.magnitude),
            ..Default::default()
        };
        let (mut norm, mut rope, mut cache) = (0, 0, 0);
        let mut total = 0;
        let mut reads = Vec::new();
        let mut writes = Vec::new();
        let rows = heads.parts[0].source.rows;
        for (i, part) in heads.parts.iter().enumerate() {
            let count = part.source.width / heads.head_dim;
            push.source[i] = part.source.address;
            push.weight[i] = part.norm.unwrap_or(0);
            push.target[i] = part.target;
            push.heads[i] = count;
            norm |= bits(part.norm.is_some()) << i;
            rope |= bits(part.turns) << i;
            cache |= bits(part.cache_bytes.is_some()) << i;
            total += count;
            reads.push(self.range(&part.source));
            writes.push(match part.cache_bytes {
                Some(bytes) => part.target..part.target + bytes,
                None => self.range(&Matrix { address: part.target, ..part.source }),
            });
        }
        let constants = vec![
            (0, heads.head_dim),
            (1, norm),
            (2, rope),
            (3, cache),
            (4, kernels::element(heads.kv)),
            (5, bits(heads.rope.is_some_and(|rope| rope.neighbours))),
            (6, heads.rope.map_or(0, |rope| rope.pairs)),
        ];
        let mut dispatch = Dispatch::new(Shader::Heads, constants, &push, [total, self.count(rows), 1]);
        (dispatch.reads, dispatch.writes) = (reads, writes);
        self.push(dispatch, &[], &[]);
    }

    /// Whether heads and attention are one kernel: one row a sequence.
    fn attends(&self, at: &AttentionAt) -> bool {
        !self.bucket.many
            && at.head_dim.is_multiple_of(8)
            && self.capabilities.shared_bytes >= ATTEND_SHARED_BYTES
            && self.capabilities.workgroup >= 8 * self.capabilities.subgroup
    }

    fn attend(&mut self, heads: &HeadsAt, at: &AttentionAt, next: Option<&Operation>) {
        let group = at.q.width / at.head_dim / at.kv_heads;
        let tiles = self.bucket.tiles[at.list];
        let lone = self.capabilities.kind == Kind::Discrete && tiles * group * at.kv_heads <= LONE_QUERIES;
        let queries = if lone { 1 } else { group.min(decode_queries(self.capabilities)) };
        let columns = at.kv_heads * group.div_ceil(queries);
        let seen = at.window.map_or(self.bucket.longest, |window| self.bucket.longest.min(window));
        // Its registers leave room for half as many workgroups side by side as those of other kernels do.
        let most = (full(self.capabilities) / 2 / (tiles * columns).max(1)).clamp(1, 16);
        let splits = seen.div_ceil(32).clamp(1, most);
        let bytes = at.head_dim.is_multiple_of(32) && self.wants(next, &at.out, Method::Gemv { integer: true });
        let halves = at.kv != KvType::F32 && self.wants(next, &at.out, Method::GemmFragments);
        let (form, (result, scales)) = match (bytes, halves) {
            (true, _) => (form::BYTES, self.made(&at.out)),
            (_, true) => (form::FRAGMENTS, (self.addresses.quants, self.addresses.scales)),
            _ => (form::FLOATS, (at.out.address, 0)),
        };
        let parts = &heads.parts;
        let push = kernels::Attend {
            source: [0, 1, 2].map(|i| parts[i].source.address),
            weight: [0, 1].map(|i| parts[i].norm.unwrap_or(0)),
            frequencies: heads.rope.map_or(0, |rope| rope.frequencies),
            positions: self.addresses.positions,
            keys: at.keys,
            values: at.values,
            tiles: self.addresses.tiles[at.list],
            tables: self.addresses.tables,
            partial: self.addresses.partial,
            result,
            scales,
            kv_heads: at.kv_heads,
            window: at.window.unwrap_or(0),
            splits,
            padding: 0,
        };
        let flags = |of: fn(&HeadPartAt) -> bool| bits(of(&parts[0])) | bits(of(&parts[1])) << 1;
        let software = self.capabilities.kind == Kind::Software;
        let subgroups = if software { 2 } else { 8 };
        let constants = vec![
            (0, subgroups * self.capabilities.subgroup),
            (1, at.head_dim),
            (2, queries),
            (3, group),
            (4, subgroups),
            (5, kernels::element(at.kv)),
            (6, bits(at.softcap.is_some())),
            (7, if software { 1 } else { 4 }),
            (8, bits(splits > 1)),
            (9, flags(|part| part.norm.is_some())),
            (10, flags(|part| part.turns)),
            (11, bits(heads.rope.is_some_and(|rope| rope.neighbours))),
            (12, heads.rope.map_or(0, |rope| rope.pairs)),
            (13, heads.eps.to_bits()),
            (14, heads.rope.map_or(1.0, |rope| rope.magnitude).to_bits()),
            (15, at.scale.to_bits()),
            (16, at.softcap.unwrap_or(1.0).to_bits()),
            (17, form),
        ];
        let mut dispatch = Dispatch::new(Shader::Attend, constants, &push, [tiles, columns, splits]);
        dispatch.work = 4 * u64::from(seen) * u64::from(at.q.width) * u64::from(self.bucket.tokens);
        dispatch.bytes = at.seen_bytes(seen) * u64::from(tiles);
        let caches = [at.keys..at.keys + at.cache_bytes, at.values..at.values + at.cache_bytes];
        dispatch.reads.extend(caches.iter().cloned());
        dispatch.writes.extend(caches);
        if splits > 1 {
            let shares = partial_bytes(self.capabilities, at.head_dim as usize, None);
            dispatch.writes.push(self.addresses.partial..self.addresses.partial + shares);
        }
        dispatch.label = format!("attend {} {}", at.head_dim, at.window.map_or("whole", |_| "window"));
        let reads: Vec<Matrix> = parts.iter().map(|part| part.source).collect();
        if bytes {
            dispatch.writes.extend(self.made_ranges(&at.out));
            self.made = Some(at.out);
            self.push(dispatch, &reads.iter().collect::<Vec<_>>(), &[]);
        } else if halves {
            dispatch.writes.extend(self.prepared_ranges(form, self.count(at.out.rows), at.out.width));
            self.halved = Some(at.out);
            self.push(dispatch, &reads.iter().collect::<Vec<_>>(), &[]);
        } else {
            self.push(dispatch, &reads.iter().collect::<Vec<_>>(), &[&at.out]);
        }
    }

    fn attention(&mut self, at: &AttentionAt) {
        let heads = at.q.width / at.head_dim;
        let group = heads / at.kv_heads;
        let matrices = attention_matrices(self.capabilities, self.arithmetic, at.head_dim, at.kv);
        let most = tile_queries(matrices);
        let tile_heads = group.min(most);
        let tiles = self.bucket.tiles[at.list];
        let columns = at.kv_heads * group.div_ceil(tile_heads);
        // Keys that a tile may see, in chunks.
        let seen = at.window.map_or(self.bucket.longest, |window| self.bucket.longest.min(window.saturating_add(most)));
        let (chunk, wanted) = match matrices {
            Some(_) => (KV_BLOCK_TOKENS as u32, full(self.capabilities) / 2),
            None => (ATTENTION_WIDTH, full(self.capabilities)),
        };
        let splits = (wanted / (tiles * columns).max(1)).clamp(1, seen.div_ceil(chunk).max(1));
        let push = kernels::Attention {
            q: at.q.address,
            keys: at.keys,
            values: at.values,
            result: at.out.address,
            tiles: self.addresses.tiles[at.list],
            tables: self.addresses.tables,
            partial: self.addresses.partial + PARTIAL_BEGIN,
            heads,
            kv_heads: at.kv_heads,
            window: at.window.unwrap_or(0),
            splits,
            scale: at.scale,
            cap: at.softcap.unwrap_or(0.0),
        };
        let mut constants = vec![(1, at.head_dim), (3, tile_heads), (4, group)];
        constants.extend([(5, kernels::element(at.kv)), (6, bits(at.softcap.is_some()))]);
        let shader = match matrices {
            Some(matrices) => {
                constants.extend([(0, MATRIX_SUBGROUPS * self.capabilities.subgroup), (2, matrices)]);
                Shader::AttentionMatrix
            }
            None => {
                let queries = if self.bucket.many { TILE_QUERIES } else { tile_heads };
                // A processor hides no latency, and takes long to compile what is unrolled.
                let ahead = if self.capabilities.kind == Kind::Software { 1 } else { 8 };
                constants.extend([(0, ATTENTION_WIDTH), (2, queries), (7, ahead), (8, bits(splits > 1))]);
                Shader::Attention
            }
        };
        let mut dispatch = Dispatch::new(shader, constants, &push, [tiles, columns, splits]);
        dispatch.work = 4 * u64::from(seen) * u64::from(at.q.width) * u64::from(self.bucket.tokens);
        dispatch.bytes = at.seen_bytes(seen) * u64::from(tiles);
        dispatch.reads.extend([at.keys..at.keys + at.cache_bytes, at.values..at.values + at.cache_bytes]);
        dispatch.label = format!("{} {} {}", shader.name(), at.head_dim, at.window.map_or("whole", |_| "window"));
        if splits == 1 {
            self.push(dispatch, &[&at.q], &[&at.out]);
            return;
        }
        let entries = self.bucket.tokens * heads;
        let bytes = u64::from(entries) * u64::from(splits) * u64::from(at.head_dim + 2) * 4;
        let partial = self.addresses.partial + PARTIAL_BEGIN;
        let partial = partial..partial + bytes;
        dispatch.writes.push(partial.clone());
        self.push(dispatch, &[&at.q], &[]);
        let push = kernels::Merge { partial: partial.start, result: at.out.address, splits, padding: 0 };
        let mut merge = Dispatch::new(Shader::Merge, vec![(0, at.head_dim)], &push, [entries, 1, 1]);
        merge.reads.push(partial);
        self.push(merge, &[], &[&at.out]);
    }
}

/// Bytes of shares of attention, at most: a tile is divided only while workgroups are few.
pub(crate) fn partial_bytes(capabilities: &Capabilities, head_dim: usize, matrices: Option<u32>) -> u64 {
    let few = full(capabilities) * TILE_QUERIES.max(decode_queries(capabilities));
    let many = matrices.map_or(0, |_| full(capabilities) / 2 * tile_queries(matrices));
    PARTIAL_BEGIN + u64::from(few.max(many)) * (head_dim as u64 + 4) * 4
}

/// Invocations for a row of `width` elements, and how many words of four elements each holds.
pub(crate) fn row_width(width: u32, capabilities: &Capabilities) -> (u32, u32) {
    let words = width.div_ceil(4);
    let most = capabilities.workgroup.clamp(32, 512);
    let invocations = words.next_power_of_two().clamp(32, most).next_multiple_of(capabilities.subgroup);
    (invocations, words.div_ceil(invocations))
}

/// Workgroups for as many rows, in two dimensions, since one may be limited to 65,535.
pub(crate) fn rows_of_groups(rows: u32) -> [u32; 3] {
    let x = rows.min(32768);
    [x, rows.div_ceil(x.max(1)), 1]
}

impl Addresses {
    /// Shows every address to `visit`.
    pub(crate) fn visit(&mut self, visit: &dyn Fn(&mut u64)) {
        let Addresses { positions, outputs, ids, places, tiles, tables, quants, scales, made, partial, top } = self;
        [positions, outputs, ids, tables, quants, scales, made, partial, top].into_iter().for_each(visit);
        places.iter_mut().chain(tiles).for_each(visit);
    }
}
