//! What the operations of a stage become for a step of given size: dispatches.

use graph::{Arithmetic, Rows};

use crate::{
    capabilities::{Capabilities, Kind},
    kernels::{self, Dispatch, elementwise, epilogue, form},
    operation::{AfterAt, AttentionAt, HeadPartAt, HeadsAt, LinearAt, Matrix, NormAt, Operation, ProductAt},
    pack::Format,
    shaders::Shader,
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
}

/// What dispatches are made with.
pub(crate) struct Lister<'a> {
    pub(crate) capabilities: &'a Capabilities,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) bucket: &'a Bucket,
    pub(crate) addresses: &'a Addresses,
    pub(crate) list: Vec<Dispatch>,
    /// The value that lies as bytes in [`Addresses::made`], and as floats nowhere.
    pub(crate) made: Option<Matrix>,
}

/// Memory that belongs to the program and not to one operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) positions: u64,
    pub(crate) outputs: u64,
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
}

/// Rows of activations up to which a product unpacks the weight in registers.
pub(crate) const GEMV_ROWS: u32 = 16;

/// Rows of activations up to which integers are faster than matrix units.
const FEW_ROWS: u32 = 4;

/// Invocations of the workgroups of attention: keys of a chunk.
pub(crate) const ATTENTION_WIDTH: u32 = 128;

/// Queries of a tile of attention, at most: more share what is read of keys, and leave fewer workgroups a place.
const TILE_QUERIES: u32 = 4;

/// The same of decoding, where one tile holds the heads of one row. Software compiles kernels at the speed of a
/// processor, and each query is unrolled.
fn decode_queries(capabilities: &Capabilities) -> u32 {
    if capabilities.kind == Kind::Software { 2 } else { 8 }
}

/// Rows of a sequence in a tile of attention, where KV heads are shared by `group` query heads.
pub(crate) fn tile_rows(group: usize) -> usize {
    (TILE_QUERIES as usize / group).max(1)
}

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

/// Rows of activations up to which workgroups prepare them themselves.
const PROLOGUE_ROWS: u32 = 1;

/// Subgroups of a workgroup that does.
const PROLOGUE_SUBGROUPS: u32 = 16;

/// What products read, and whether gate and up are to end in bytes.
struct Input<'a> {
    floats: Matrix,
    /// What each workgroup does to the row itself, where that is no kernel of its own.
    prologue: Option<&'a ProductAt>,
    /// Where it lies in [`Addresses::made`].
    made: Option<Matrix>,
    bytes: bool,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Gemv { integer: bool },
    Gemm,
    GemmFew,
    GemmMatrix,
}

impl Method {
    fn form(self) -> u32 {
        match self {
            Method::Gemv { integer: true } => form::BYTES,
            Method::Gemv { integer: false } | Method::Gemm => form::FLOATS,
            Method::GemmFew | Method::GemmMatrix => form::HALVES,
        }
    }
}

fn bits(value: bool) -> u32 {
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
                Operation::Select { x, out } => self.select(x, out),
            }
        }
    }

    /// Whether the operation after the one that makes `out` is its only reader and wants bytes of it.
    fn wants_bytes(&self, next: Option<&Operation>, out: &Matrix) -> bool {
        let Some(Operation::Product(product)) = next else { return false };
        let count = self.count(out.rows);
        product.x == *out
            && product.addend.is_none()
            && product.norm.is_none()
            && !product.input_is_read
            && out.width.is_multiple_of(32)
            && product
                .linears
                .iter()
                .all(|linear| self.method(linear, out.width, count) == Method::Gemv { integer: true })
    }

    /// Where `out` lies as bytes, and its scales.
    fn made(&self, out: &Matrix) -> (u64, u64) {
        let bytes = u64::from(self.count(out.rows)) * u64::from(out.width);
        (self.addresses.made, self.addresses.made + bytes.next_multiple_of(16))
    }

    fn made_ranges(&self, out: &Matrix) -> [std::ops::Range<u64>; 2] {
        let (quants, scales) = self.made(out);
        let bytes = u64::from(self.count(out.rows)) * u64::from(out.width);
        [quants..quants + bytes, scales..scales + bytes / 4]
    }

    fn count(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Tokens => self.bucket.tokens,
            Rows::Outputs => self.bucket.outputs,
        }
    }

    fn range(&self, matrix: &Matrix) -> std::ops::Range<u64> {
        let bytes = u64::from(self.count(matrix.rows)) * u64::from(matrix.width) * 4;
        matrix.address..matrix.address + bytes
    }

    fn push(&mut self, mut dispatch: Dispatch, reads: &[&Matrix], writes: &[&Matrix]) {
        dispatch.reads.extend(reads.iter().map(|matrix| self.range(matrix)));
        dispatch.writes.extend(writes.iter().map(|matrix| self.range(matrix)));
        if dispatch.groups.iter().all(|groups| *groups > 0) {
            self.list.push(dispatch);
        }
    }

    fn method(&self, linear: &LinearAt, cols: u32, count: u32) -> Method {
        let fast = self.arithmetic == Arithmetic::Fast;
        let matrices = self
            .capabilities
            .cooperative_matrix
            .filter(|_| fast && linear.format != Format::F32 && cols.is_multiple_of(32));
        match matrices {
            Some(shape) if count > FEW_ROWS && count <= 64 && shape.is_square() => Method::GemmFew,
            Some(_) if count > GEMV_ROWS => Method::GemmMatrix,
            _ if count <= GEMV_ROWS => {
                Method::Gemv { integer: fast && self.capabilities.integer_dot && !linear.format.is_float() }
            }
            _ => Method::Gemm,
        }
    }

    fn product(&mut self, product: &ProductAt, next: Option<&Operation>) {
        let count = self.count(product.x.rows);
        if count == 0 {
            return;
        }
        let ready = self.made.take().filter(|made| *made == product.x);
        let cols = product.input.width;
        let methods: Vec<Method> = product.linears.iter().map(|linear| self.method(linear, cols, count)).collect();
        let forms = methods.iter().fold(0, |forms, method| forms | method.form());
        // The floats that products read: what was summed or given, unless a norm comes after.
        let plain = product.sum.unwrap_or(product.x);
        let floats = if product.norm.is_some() { product.input } else { plain };
        let prologue = ready.is_none() && self.in_prologue(product, &methods, count);
        if ready.is_none() && !prologue {
            self.prepare(product, count, forms);
        }
        let bytes = match product.after {
            AfterAt::Gated { out, .. } => ready.is_none() && self.wants_bytes(next, &out),
            _ => false,
        };

        let mut done = vec![false; methods.len()];
        for first in 0..methods.len() {
            if done[first] {
                continue;
            }
            let kind = (product.linears[first].format, methods[first], product.linears[first].bias.is_some());
            let same: Vec<usize> = (first..methods.len())
                .filter(|i| {
                    let linear = &product.linears[*i];
                    !done[*i] && (linear.format, methods[*i], linear.bias.is_some()) == kind
                })
                .take(3)
                .collect();
            same.iter().for_each(|i| done[*i] = true);
            let parts: Vec<&LinearAt> = same.iter().map(|i| &product.linears[*i]).collect();
            let input = Input { floats, prologue: prologue.then_some(product), made: ready, bytes };
            self.linears(&parts, kind.1, &input, count, product.after);
        }
        if let AfterAt::Gated { kind, out } = product.after
            && !(methods[0] == methods[1] && self.gates(&product.linears, methods[0]))
        {
            let (gate, up) = (product.linears[0].out, product.linears[1].out);
            self.element(elementwise::GATED, kernels::activation(kind), 0.0, &gate, Some(up), &out);
        }
    }

    /// Whether the row is summed, normed and rounded by each workgroup of the products: of one kernel that is, whose
    /// workgroups are few enough, and with the fields that biases leave free where there is a sum.
    fn in_prologue(&self, product: &ProductAt, methods: &[Method], count: u32) -> bool {
        let first = &product.linears[0];
        let alike = |linear: &LinearAt| (linear.format, linear.bias.is_some()) == (first.format, first.bias.is_some());
        let rows: u32 = product.linears.iter().map(|linear| linear.out.width).sum();
        let width = product.input.width;
        // Of gate and up together a workgroup has 64 rows, otherwise one a subgroup.
        let groups = if matches!(product.after, AfterAt::Gated { .. }) { rows / 64 } else { rows / PROLOGUE_SUBGROUPS };
        // What they read of the row, the other, and two norms.
        let traffic = u64::from(groups) * u64::from(width * count) * 16;
        product.norm.is_some()
            && count <= PROLOGUE_ROWS
            && width.is_multiple_of(32)
            && !product.input_is_read
            && product.linears.len() <= 3
            && product.linears.iter().all(alike)
            && methods.iter().all(|method| *method == Method::Gemv { integer: true })
            && (first.bias.is_none() || product.addend.is_none())
            && matches!(product.after, AfterAt::Nothing | AfterAt::Gated { .. })
            && traffic < 32_000_000
            && width * count * 5 / 4 <= self.capabilities.shared_bytes / 2
            && self.capabilities.workgroup >= PROLOGUE_SUBGROUPS * self.capabilities.subgroup
    }

    /// Whether gate and up are one kernel that applies the activation.
    fn gates(&self, linears: &[LinearAt], method: Method) -> bool {
        let together = match method {
            Method::Gemv { .. } => self.count(linears[0].out.rows) <= 8,
            Method::GemmFew => true,
            Method::Gemm | Method::GemmMatrix => false,
        };
        together
            && linears.len() == 2
            && linears[0].format == linears[1].format
            && linears[0].bias.is_some() == linears[1].bias.is_some()
    }

    fn prepare(&mut self, product: &ProductAt, count: u32, forms: u32) {
        let width = product.input.width;
        let mut write = forms & (form::BYTES | form::HALVES);
        if product.norm.is_some() && (forms & form::FLOATS != 0 || product.input_is_read) {
            write |= form::FLOATS;
        }
        if write == 0 && product.addend.is_none() {
            return;
        }
        let addend = match product.addend {
            None => 0,
            Some((_, None)) => 1,
            Some((_, Some(_))) => 2,
        };
        let (y, first) = product.addend.map_or((None, None), |(y, norm)| (Some(y), norm));
        let push = kernels::Prepare {
            x: product.x.address,
            y: y.map_or(0, |y| y.address),
            w1: first.map_or(0, |norm| norm.weight),
            w2: product.norm.map_or(0, |norm| norm.weight),
            sum: product.sum.map_or(0, |sum| sum.address),
            floats: product.input.address,
            quants: self.addresses.quants,
            scales: self.addresses.scales,
            width,
            eps1: first.map_or(0.0, |norm| norm.eps),
            eps2: product.norm.map_or(0.0, |norm| norm.eps),
            rows: count,
        };
        let (invocations, each) = row_width(width, self.capabilities);
        let constants = vec![
            (0, invocations),
            (1, addend),
            (2, bits(product.sum.is_some())),
            (3, bits(product.norm.is_some())),
            (4, write),
            (5, each),
            (6, bits(!width.is_multiple_of(4))),
        ];
        let mut dispatch = Dispatch::new(Shader::Prepare, constants, &push, rows_of_groups(count));
        if write & form::BYTES != 0 {
            let bytes = u64::from(count) * u64::from(width);
            dispatch.writes.push(self.addresses.quants..self.addresses.quants + bytes);
            dispatch.writes.push(self.addresses.scales..self.addresses.scales + bytes / 4);
        }
        if write & form::HALVES != 0 {
            let bytes = u64::from(count) * u64::from(width) * 2;
            dispatch.writes.push(self.addresses.quants..self.addresses.quants + bytes);
            dispatch.writes.push(self.addresses.scales..self.addresses.scales + u64::from(count) * 8);
        }
        dispatch.label = format!("prepare {width}");
        let mut reads = vec![&product.x];
        reads.extend(y.as_ref());
        let mut writes = Vec::new();
        writes.extend(product.sum.as_ref());
        if write & form::FLOATS != 0 {
            writes.push(&product.input);
        }
        self.push(dispatch, &reads, &writes);
    }

    /// Up to three products of one format and method, side by side.
    fn linears(&mut self, parts: &[&LinearAt], method: Method, input: &Input<'_>, count: u32, after: AfterAt) {
        let floats = &input.floats;
        let cols = floats.width;
        let prepared = match &input.made {
            Some(made) => self.made(made),
            None => (self.addresses.quants, self.addresses.scales),
        };
        let gated = match after {
            AfterAt::Gated { kind, out } if parts.len() == 2 => {
                let both: Vec<LinearAt> = parts.iter().map(|part| **part).collect();
                self.gates(&both, method).then_some((kind, out))
            }
            _ => None,
        };
        let residual = match after {
            AfterAt::Residual { residual, out } => Some((residual, out)),
            _ => None,
        };
        let mut push = kernels::Product {
            x: if method.form() == form::FLOATS { floats.address } else { prepared.0 },
            scales: prepared.1,
            residual: residual.map_or(0, |(residual, _)| residual.address),
            cols,
            count,
            ..Default::default()
        };
        let (addend, first_norm) = match input.prologue.and_then(|product| product.addend) {
            None => (None, None),
            Some((y, norm)) => (Some(y), norm),
        };
        if let Some(product) = input.prologue {
            push.x = product.x.address;
            push.residual = product.norm.map_or(0, |norm| norm.weight);
        }
        let mut outs: Vec<Matrix> = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let out = residual.map(|(_, out)| out).or(gated.map(|(_, out)| out)).unwrap_or(part.out);
            push.weight[i] = part.weight;
            push.result[i] = out.address;
            push.bias[i] = part.bias.unwrap_or(0);
            push.rows[i] = part.out.width;
            outs.push(out);
        }
        let bytes = gated.filter(|_| input.bytes && self.gates_to_bytes(method, &push)).map(|(_, out)| out);
        if let Some(out) = bytes {
            (push.result[0], push.result[1]) = self.made(&out);
        }
        let what = if bytes.is_some() {
            epilogue::GATED_BYTES
        } else if gated.is_some() {
            epilogue::GATED
        } else if residual.is_some() {
            epilogue::RESIDUAL
        } else {
            epilogue::STORE
        };
        let mut constants = vec![
            (0, parts[0].format as u32),
            (2, parts.len() as u32),
            (3, bits(parts[0].bias.is_some())),
            (4, what),
            (5, gated.map_or(0, |(kind, _)| kernels::activation(kind))),
        ];
        if let Some(product) = input.prologue {
            if let Some(y) = &addend {
                let sum = product.sum.map_or(0, |sum| sum.address);
                push.bias = [y.address, first_norm.map_or(0, |norm| norm.weight), sum];
            }
            constants.extend([
                (11, 1),
                (12, bits(addend.is_some()) + bits(first_norm.is_some())),
                (13, bits(product.sum.is_some())),
                (14, first_norm.map_or(0.0, |norm| norm.eps).to_bits()),
                (15, product.norm.map_or(0.0, |norm| norm.eps).to_bits()),
                (16, cols),
            ]);
        }
        let mut dispatch = self.product_dispatch(method, constants, &push, parts.len(), what);
        let rows: u64 = push.rows.iter().map(|rows| u64::from(*rows)).sum();
        dispatch.work = 2 * rows * u64::from(cols) * u64::from(count);
        dispatch.label = format!("{} {:?} {rows}x{cols} by {count}", dispatch.label, parts[0].format);
        let mut reads: Vec<&Matrix> = residual.iter().map(|(residual, _)| residual).collect();
        if let Some(product) = input.prologue {
            reads.push(&product.x);
            reads.extend(&addend);
            dispatch.writes.extend(product.sum.iter().map(|sum| self.range(sum)));
        } else if method.form() == form::FLOATS {
            reads.push(floats);
        } else {
            let scale = if method.form() == form::HALVES { 2 } else { 1 };
            let read = u64::from(count) * u64::from(cols) * scale;
            dispatch.reads.push(prepared.0..prepared.0 + read);
            dispatch.reads.push(prepared.1..prepared.1 + read / 4);
        }
        if let Some(out) = bytes {
            dispatch.writes.extend(self.made_ranges(&out));
            self.made = Some(out);
            self.push(dispatch, &reads, &[]);
        } else {
            self.push(dispatch, &reads, &outs.iter().collect::<Vec<_>>());
        }
    }

    /// Whether gate and up can end in bytes: a workgroup has whole groups of 32 rows.
    fn gates_to_bytes(&self, method: Method, push: &kernels::Product) -> bool {
        method == Method::Gemv { integer: true }
            && push.count <= FEW_ROWS
            && push.rows[0].is_multiple_of(32)
            && self.capabilities.workgroup >= PROLOGUE_SUBGROUPS * self.capabilities.subgroup
    }

    fn product_dispatch(
        &self,
        method: Method,
        mut constants: Vec<(u32, u32)>,
        push: &kernels::Product,
        parts: usize,
        what: u32,
    ) -> Dispatch {
        let gated = what >= epilogue::GATED;
        let tiles = |size: u32| push.rows[..parts].iter().map(|rows| rows.div_ceil(size)).sum::<u32>();
        let ragged = bits(!push.cols.is_multiple_of(32));
        match method {
            Method::Gemv { integer } => {
                let columns = [1, 2, 3, 4, 6, 8, 12, 16].into_iter().find(|n| *n >= push.count).unwrap_or(GEMV_ROWS);
                let (rows, ahead) = self.gemv_rows(push, parts, gated, columns);
                // Whole groups of 32 rows, where they are rounded together.
                let to_bytes = what == epilogue::GATED_BYTES;
                let prologue = constants.iter().any(|(id, _)| *id == 11);
                let (rows, ahead) = if to_bytes { (32 / PROLOGUE_SUBGROUPS, 1) } else { (rows, ahead) };
                let subgroups = if to_bytes || prologue { PROLOGUE_SUBGROUPS } else { 4 };
                let invocations = subgroups * self.capabilities.subgroup;
                let groups = if gated { push.rows[0].div_ceil(rows) } else { tiles(rows) };
                constants.extend([
                    (1, invocations),
                    (6, rows),
                    (7, columns),
                    (8, bits(integer)),
                    (9, ragged),
                    (10, ahead),
                ]);
                Dispatch::new(Shader::Gemv, constants, push, [groups.div_ceil(subgroups), 1, 1])
            }
            Method::Gemm => {
                constants.push((9, ragged));
                Dispatch::new(Shader::Gemm, constants, push, [tiles(64), push.count.div_ceil(64), 1])
            }
            Method::GemmFew => self.gemm_few(constants, push, parts, gated),
            Method::GemmMatrix => self.gemm_matrix(constants, push, parts),
        }
    }

    fn gemm_few(&self, mut constants: Vec<(u32, u32)>, push: &kernels::Product, parts: usize, gated: bool) -> Dispatch {
        let matrices = |tiles: u32| -> u32 {
            let parts = if gated { 1 } else { parts };
            push.rows[..parts].iter().map(|rows| rows.div_ceil(16 * tiles)).sum()
        };
        let columns = push.count.div_ceil(16).next_power_of_two();
        let blocks = push.cols / 32;
        let step = [2, 1].into_iter().find(|step| blocks.is_multiple_of(*step)).unwrap_or(1);
        let tiles = if !gated && matrices(4) >= 1000 {
            4
        } else if matrices(2) >= 80 {
            2
        } else {
            1
        };
        // As many as shared memory has room for: of each, a matrix of the weight and those of the activations.
        let subgroups = 8 / columns.div_ceil(2);
        constants.extend([
            (1, subgroups * self.capabilities.subgroup),
            (6, tiles),
            (7, columns),
            (8, subgroups),
            (10, step),
        ]);
        Dispatch::new(Shader::GemmFew, constants, push, [matrices(tiles), 1, 1])
    }

    fn gemm_matrix(&self, mut constants: Vec<(u32, u32)>, push: &kernels::Product, parts: usize) -> Dispatch {
        let shape = self.capabilities.cooperative_matrix.expect("the method was chosen for it");
        let tiles = |size: u32| push.rows[..parts].iter().map(|rows| rows.div_ceil(size)).sum::<u32>();
        let groups = |m: u32, n: u32| [push.count.div_ceil(n), tiles(m), 1];
        let enough = match self.capabilities.kind {
            Kind::Discrete | Kind::Virtual => 64,
            Kind::Integrated => 12,
            Kind::Software => 1,
        };
        // Larger shares of a subgroup read less of shared memory, and take longer to store.
        let share = if push.cols >= 3072 { 64 } else { 32 };
        let sizes = [(128, 128, 64, share), (128, 64, 32, 32), (64, 64, 32, 32)];
        let fills = |(m, n, ..): &(u32, u32, u32, u32)| groups(*m, *n).iter().product::<u32>() >= enough;
        let (m, n, warp_m, warp_n) = sizes.into_iter().find(fills).unwrap_or(sizes[2]);
        constants.extend([
            (1, (m / warp_m) * (n / warp_n) * self.capabilities.subgroup),
            (6, m),
            (7, n),
            (8, warp_m),
            (10, warp_n),
            (11, shape.m),
            (12, shape.n),
            (13, shape.k),
        ]);
        let mut dispatch = Dispatch::new(Shader::GemmMatrix, constants, push, groups(m, n));
        dispatch.label = format!("{} {m}x{n}", dispatch.label);
        dispatch
    }

    /// Rows of the weight a subgroup takes, and how many blocks it loads ahead: rows share the activations that are
    /// loaded, but there have to be subgroups enough to keep memory busy.
    fn gemv_rows(&self, push: &kernels::Product, parts: usize, gated: bool, columns: u32) -> (u32, u32) {
        let total = if gated { push.rows[0] } else { push.rows[..parts].iter().sum() };
        let wanted = match self.capabilities.kind {
            Kind::Discrete | Kind::Virtual => 4096,
            Kind::Integrated => 512,
            Kind::Software => 8,
        };
        let most = if gated || columns > 4 { 2 } else { 4 };
        let rows = [4, 2, 1].into_iter().find(|rows| *rows <= most && total / rows >= wanted).unwrap_or(1);
        let ahead = match columns {
            1 if push.cols >= 8192 => 2,
            1 | 2 => most / rows,
            _ => 1,
        };
        (rows, ahead)
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

    fn element(&mut self, op: u32, kind: u32, factor: f32, a: &Matrix, b: Option<Matrix>, out: &Matrix) {
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
            (4, bits(heads.halves)),
            (5, bits(heads.rope.is_some_and(|rope| rope.neighbours))),
            (6, heads.rope.map_or(0, |rope| rope.pairs)),
        ];
        let mut dispatch = Dispatch::new(Shader::Heads, constants, &push, [total, self.count(rows), 1]);
        (dispatch.reads, dispatch.writes) = (reads, writes);
        self.push(dispatch, &[], &[]);
    }

    /// Whether heads and attention are one kernel: one row a sequence.
    fn attends(&self, at: &AttentionAt) -> bool {
        !self.bucket.many && at.head_dim.is_multiple_of(8)
    }

    fn attend(&mut self, heads: &HeadsAt, at: &AttentionAt, next: Option<&Operation>) {
        let group = at.q.width / at.head_dim / at.kv_heads;
        let queries = group.min(decode_queries(self.capabilities));
        let columns = at.kv_heads * group.div_ceil(queries);
        let tiles = self.bucket.tiles[at.list];
        let seen = at.window.map_or(self.bucket.longest, |window| self.bucket.longest.min(window));
        let most = (full(self.capabilities) / (tiles * columns).max(1)).clamp(1, 16);
        let splits = seen.div_ceil(32).clamp(1, most);
        let bytes = at.head_dim.is_multiple_of(32) && self.wants_bytes(next, &at.out);
        let (result, scales) = if bytes { self.made(&at.out) } else { (at.out.address, 0) };
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
            (5, bits(at.halves)),
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
            (17, bits(bytes)),
        ];
        let mut dispatch = Dispatch::new(Shader::Attend, constants, &push, [tiles, columns, splits]);
        dispatch.work = 4 * u64::from(seen) * u64::from(at.q.width) * u64::from(self.bucket.tokens);
        let caches = [at.keys..at.keys + at.cache_bytes, at.values..at.values + at.cache_bytes];
        dispatch.reads.extend(caches.iter().cloned());
        dispatch.writes.extend(caches);
        if splits > 1 {
            let shares = partial_bytes(self.capabilities, at.head_dim as usize);
            dispatch.writes.push(self.addresses.partial..self.addresses.partial + shares);
        }
        dispatch.label = format!("attend {} {}", at.head_dim, at.window.map_or("whole", |_| "window"));
        let reads: Vec<Matrix> = parts.iter().map(|part| part.source).collect();
        if bytes {
            dispatch.writes.extend(self.made_ranges(&at.out));
            self.made = Some(at.out);
            self.push(dispatch, &reads.iter().collect::<Vec<_>>(), &[]);
        } else {
            self.push(dispatch, &reads.iter().collect::<Vec<_>>(), &[&at.out]);
        }
    }

    fn attention(&mut self, at: &AttentionAt) {
        let heads = at.q.width / at.head_dim;
        let group = heads / at.kv_heads;
        let tile_heads = group.min(TILE_QUERIES);
        let many = self.bucket.many;
        let queries = if many { TILE_QUERIES } else { tile_heads };
        let tiles = self.bucket.tiles[at.list];
        let columns = at.kv_heads * group.div_ceil(tile_heads);
        // Keys that a tile may see, in chunks.
        let seen = at
            .window
            .map_or(self.bucket.longest, |window| self.bucket.longest.min(window.saturating_add(TILE_QUERIES)));
        let chunks = seen.div_ceil(ATTENTION_WIDTH);
        let splits = (full(self.capabilities) / (tiles * columns).max(1)).clamp(1, chunks.max(1));
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
        let constants = vec![
            (0, ATTENTION_WIDTH),
            (1, at.head_dim),
            (2, queries),
            (3, tile_heads),
            (4, group),
            (5, bits(at.halves)),
            (6, bits(at.softcap.is_some())),
            // A processor hides no latency, and takes long to compile what is unrolled.
            (7, if self.capabilities.kind == Kind::Software { 1 } else { 8 }),
            (8, bits(splits > 1)),
        ];
        let mut dispatch = Dispatch::new(Shader::Attention, constants, &push, [tiles, columns, splits]);
        dispatch.work = 4 * u64::from(seen) * u64::from(at.q.width) * u64::from(self.bucket.tokens);
        dispatch.reads.extend([at.keys..at.keys + at.cache_bytes, at.values..at.values + at.cache_bytes]);
        dispatch.label = format!("attention {} {}", at.head_dim, at.window.map_or("whole", |_| "window"));
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
pub(crate) fn partial_bytes(capabilities: &Capabilities, head_dim: usize) -> u64 {
    PARTIAL_BEGIN + u64::from(full(capabilities)) * u64::from(decode_queries(capabilities)) * (head_dim as u64 + 4) * 4
}

/// Invocations for a row of `width` elements, and how many words of four elements each holds.
fn row_width(width: u32, capabilities: &Capabilities) -> (u32, u32) {
    let words = width.div_ceil(4);
    let most = capabilities.workgroup.clamp(32, 512);
    let invocations = words.next_power_of_two().clamp(32, most).next_multiple_of(capabilities.subgroup);
    (invocations, words.div_ceil(invocations))
}

/// Workgroups for as many rows, in two dimensions, since one may be limited to 65,535.
fn rows_of_groups(rows: u32) -> [u32; 3] {
    let x = rows.min(32768);
    [x, rows.div_ceil(x.max(1)), 1]
}

impl Addresses {
    /// Shows every address to `visit`.
    pub(crate) fn visit(&mut self, visit: &dyn Fn(&mut u64)) {
        let Addresses { positions, outputs, places, tiles, tables, quants, scales, made, partial } = self;
        [positions, outputs, tables, quants, scales, made, partial].into_iter().for_each(visit);
        places.iter_mut().chain(tiles).for_each(visit);
    }
}
