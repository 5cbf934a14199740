//! What products become for a step of given size: which kernel, with what before and after it.

use graph::Arithmetic;

use crate::{
    capabilities::Kind,
    kernels::{self, Dispatch, elementwise, epilogue, form},
    list::{Addresses, Lister, bits, row_width, rows_of_groups},
    operation::{AfterAt, LinearAt, Matrix, Operation, ProductAt},
    pack::Format,
    shaders::Shader,
    variants::{self, PROLOGUE_SUBGROUPS, Rows, SUBGROUPS, Tile},
};

/// Rows of activations up to which a product unpacks the weight in registers.
pub(crate) const GEMV_ROWS: u32 = 16;

/// Shared memory that the kernels on matrix units take, at most.
pub(crate) const MATRIX_SHARED_BYTES: u32 = 48 << 10;

/// Rows of activations up to which integers are faster than matrix units.
const FEW_ROWS: u32 = 4;

/// The same where invocations make matrices of their own elements.
const PAIR: u32 = 2;

/// Rows of activations up to which workgroups prepare them themselves.
const PROLOGUE_ROWS: u32 = 1;

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
pub(crate) enum Method {
    Gemv { integer: bool },
    Gemm,
    GemmFew,
    GemmFragments,
    GemmMatrix,
}

impl Method {
    fn form(self) -> u32 {
        match self {
            Method::Gemv { integer: true } => form::BYTES,
            Method::Gemv { integer: false } | Method::Gemm => form::FLOATS,
            Method::GemmFew | Method::GemmMatrix => form::HALVES,
            Method::GemmFragments => form::FRAGMENTS,
        }
    }
}

impl Lister<'_> {
    fn method(&self, linear: &LinearAt, cols: u32, count: u32) -> Method {
        let fast = self.arithmetic == Arithmetic::Fast;
        let room = self.capabilities.shared_bytes >= MATRIX_SHARED_BYTES
            && self.capabilities.workgroup >= 8 * self.capabilities.subgroup;
        let matrices = self
            .capabilities
            .cooperative_matrix
            .filter(|_| fast && room && linear.format != Format::F32 && cols.is_multiple_of(32));
        match matrices {
            Some(_)
                if self.capabilities.matrix_fragments && count > PAIR && count <= 64 && cols.is_multiple_of(128) =>
            {
                Method::GemmFragments
            }
            Some(shape) if count > FEW_ROWS && count <= 64 && shape.is_square() => Method::GemmFew,
            Some(_) if count > GEMV_ROWS => Method::GemmMatrix,
            _ if count <= GEMV_ROWS => {
                Method::Gemv { integer: fast && self.capabilities.integer_dot && !linear.format.is_float() }
            }
            _ => Method::Gemm,
        }
    }

    pub(crate) fn product(&mut self, product: &ProductAt, next: Option<&Operation>) {
        let count = self.count(product.input.rows);
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
        let is_halved = self.halved.take().is_some_and(|halved| halved == product.x);
        let prologue = ready.is_none() && self.in_prologue(product, &methods, count);
        if ready.is_none() && !is_halved && !prologue {
            self.prepare(product, count, forms);
        }
        let bytes = match product.after {
            AfterAt::Gated { out, .. } => ready.is_none() && self.wants(next, &out, Method::Gemv { integer: true }),
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
        let gated = matches!(product.after, AfterAt::Gated { .. });
        let total = if gated { rows / 2 } else { rows };
        let rule = self.prologue_rule(first.format == Format::Q4_0, (total, width), gated);
        product.norm.is_some()
            && !product.selects
            && count <= PROLOGUE_ROWS
            && width.is_multiple_of(32)
            && !product.input_is_read
            && product.linears.len() <= 3
            && product.linears.iter().all(alike)
            && methods.iter().all(|method| *method == Method::Gemv { integer: true })
            && (first.bias.is_none() || product.addend.is_none())
            && matches!(product.after, AfterAt::Nothing | AfterAt::Gated { .. })
            && self.row_traffic((total, width), rule) < 32_000_000
            && width * count * 5 / 4 <= self.capabilities.shared_bytes / 2
            && self.capabilities.workgroup >= PROLOGUE_SUBGROUPS * self.capabilities.subgroup
    }

    /// Whether gate and up are one kernel that applies the activation.
    fn gates(&self, linears: &[LinearAt], method: Method) -> bool {
        let together = match method {
            Method::Gemv { .. } => self.count(linears[0].out.rows) <= 8,
            Method::GemmFew | Method::GemmFragments => true,
            Method::Gemm | Method::GemmMatrix => false,
        };
        together
            && linears.len() == 2
            && linears[0].format == linears[1].format
            && linears[0].bias.is_some() == linears[1].bias.is_some()
    }

    fn prepare(&mut self, product: &ProductAt, count: u32, forms: u32) {
        let width = product.input.width;
        let mut write = forms & (form::BYTES | form::HALVES | form::FRAGMENTS);
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
            selected: self.addresses.outputs,
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
            (7, bits(product.selects)),
        ];
        let mut dispatch = Dispatch::new(Shader::Prepare, constants, &push, rows_of_groups(count));
        for form in [form::BYTES, form::HALVES, form::FRAGMENTS].into_iter().filter(|form| write & form != 0) {
            dispatch.writes.extend(self.prepared_ranges(form, count, width));
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
        let rows: u64 = push.rows.iter().map(|rows| u64::from(*rows)).sum();
        // Of a head a check has no more rows: what is chosen for them is what is checked.
        let most = graph::check::HEAD_ROWS as u64;
        let tuned_rows = if rows < most { rows.to_string() } else { format!("{most}+") };
        let kernel = format!("{:?} {tuned_rows}x{cols}{}", parts[0].format, beside(method, parts, what, input));
        let mut dispatch = self.product_dispatch(method, &kernel, constants, &push, parts.len(), what);
        dispatch.work = 2 * rows * u64::from(cols) * u64::from(count);
        dispatch.bytes = parts[0].format.bytes(rows, cols) + 4 * u64::from(count) * (u64::from(cols) + rows);
        dispatch.label = format!("{} {:?} {rows}x{cols} by {count}", dispatch.label, parts[0].format);
        let mut reads: Vec<&Matrix> = residual.iter().map(|(residual, _)| residual).collect();
        if let Some(product) = input.prologue {
            reads.push(&product.x);
            reads.extend(&addend);
            dispatch.writes.extend(product.sum.iter().map(|sum| self.range(sum)));
        } else if method.form() == form::FLOATS {
            reads.push(floats);
        } else {
            let ranges = match &input.made {
                Some(made) => self.made_ranges(made),
                None => self.prepared_ranges(method.form(), count, cols),
            };
            dispatch.reads.extend(ranges);
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
        kernel: &str,
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
                let prologue = constants.iter().any(|(id, _)| *id == 11);
                let kernel = format!("gemv {kernel} by {columns}");
                // Whole groups of 32 rows, where they are rounded together.
                let joined = (what == epilogue::GATED_BYTES).then_some(32);
                let rule = match (prologue, joined) {
                    (true, _) => {
                        let shape = (if gated { push.rows[0] } else { tiles(1) }, push.cols);
                        self.prologue_rule(constants.contains(&(0, Format::Q4_0 as u32)), shape, joined.is_some())
                    }
                    (false, Some(rows)) => (rows / PROLOGUE_SUBGROUPS, 1, PROLOGUE_SUBGROUPS, 0),
                    (false, None) => self.gemv_rule(push, parts, gated, columns),
                };
                let taken = self.rows_variant(&kernel, rule, prologue, joined, columns * if gated { 2 } else { 1 });
                let (rows, ahead, subgroups, _) = taken;
                let invocations = subgroups * self.capabilities.subgroup;
                let shares = if gated { push.rows[0].div_ceil(rows) } else { tiles(rows) };
                constants.extend([
                    (1, invocations),
                    (6, rows),
                    (7, columns),
                    (8, bits(integer)),
                    (9, ragged),
                    (10, ahead),
                ]);
                let groups = [self.workgroups(shares, (1, ahead, subgroups, taken.3)), 1, 1];
                let choice = Some((kernel, variants::of_rows(taken)));
                Dispatch { choice, ..Dispatch::new(Shader::Gemv, constants, push, groups) }
            }
            Method::Gemm => {
                constants.push((9, ragged));
                Dispatch::new(Shader::Gemm, constants, push, [tiles(64), push.count.div_ceil(64), 1])
            }
            Method::GemmFew => self.gemm_few(constants, push, parts, gated),
            Method::GemmFragments => self.gemm_fragments(constants, push, parts, gated),
            Method::GemmMatrix => self.gemm_matrix(&format!("gemm_matrix {kernel}"), constants, push, parts),
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
        // As many as shared memory has room for: of each, a matrix of the weight and those of the activations. Where
        // workgroups fill the device several times they are better small.
        let most = if matrices(tiles) >= 300 { 4 } else { 8 };
        let subgroups = most.min(8 / columns.div_ceil(2));
        constants.extend([
            (1, subgroups * self.capabilities.subgroup),
            (6, tiles),
            (7, columns),
            (8, subgroups),
            (10, step),
        ]);
        Dispatch::new(Shader::GemmFew, constants, push, [matrices(tiles), 1, 1])
    }

    fn gemm_fragments(
        &self,
        mut constants: Vec<(u32, u32)>,
        push: &kernels::Product,
        parts: usize,
        gated: bool,
    ) -> Dispatch {
        let parts = if gated { 1 } else { parts };
        let groups = |rows: u32| -> u32 { push.rows[..parts].iter().map(|own| own.div_ceil(rows)).sum() };
        let columns = push.count.div_ceil(16).next_power_of_two();
        // Matrices of 16 rows that a workgroup takes, subgroups that divide the columns, and loads of activations ahead.
        // Of many rows of activations these are most of what is read, and two matrices share them; but a kernel that
        // has too many registers is several times slower. Measured on 132 multiprocessors.
        let matrices = groups(16);
        let (tiles, shares, ahead) = match (columns, matrices) {
            (4, ..=400) if !gated && push.cols >= 8192 => (2, 8, 2),
            (4, 4000..) if !gated => (2, 4, 2),
            (4, _) => (1, 4, 4),
            (_, ..=400) => (1, 8, 4),
            (1, ..=520) => (1, 6, 4),
            // As many as find a place at once.
            (1, ..=700) => (1, 3, 4),
            _ => (1, 4, 4),
        };
        constants.extend([
            (1, shares * self.capabilities.subgroup),
            (6, tiles),
            (7, columns),
            (8, shares),
            (10, ahead),
        ]);
        Dispatch::new(Shader::GemmFragments, constants, push, [groups(16 * tiles), 1, 1])
    }

    fn gemm_matrix(
        &self,
        kernel: &str,
        mut constants: Vec<(u32, u32)>,
        push: &kernels::Product,
        parts: usize,
    ) -> Dispatch {
        let shape = self.capabilities.cooperative_matrix.expect("the method was chosen for it");
        let tiles = |size: u32| push.rows[..parts].iter().map(|rows| rows.div_ceil(size)).sum::<u32>();
        let groups = |m: u32, n: u32| [push.count.div_ceil(n), tiles(m), 1];
        let enough = match self.capabilities.kind {
            Kind::Discrete | Kind::Virtual => 64,
            Kind::Integrated => 12,
            Kind::Software => 1,
        };
        // Larger shares of a subgroup read less of shared memory, and take longer to store; there are fewer subgroups
        // then. Not by the rows of activations, so that a short prompt checks what a long one runs.
        let share = if push.cols >= 3072 || tiles(128) >= 80 { 64 } else { 32 };
        let rule = [(128, 128, 64, share), (128, 64, 32, 32), (64, 64, 32, 32)];
        let fills = |(m, n, ..): &Tile| groups(*m, *n).iter().product::<u32>() >= enough;
        let chosen = self.tile_variant(kernel, rule.into_iter().find(fills), fills);
        let (m, n, warp_m, warp_n) = chosen;
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
        dispatch.choice = Some((kernel.to_owned(), variants::of_tile(chosen)));
        dispatch
    }

    /// Rows of the weight a subgroup takes, and how many blocks it loads ahead: rows share the activations that are
    /// loaded, but there have to be subgroups enough to keep memory busy.
    fn gemv_rule(&self, push: &kernels::Product, parts: usize, gated: bool, columns: u32) -> Rows {
        let total = if gated { push.rows[0] } else { push.rows[..parts].iter().sum() };
        // Subgroups at least, and rows of each at most where there is one row of activations.
        let (wanted, lone) = match self.capabilities.kind {
            // One row of a head is 7 to 9 % faster than four.
            Kind::Discrete | Kind::Virtual => (4096, 1),
            Kind::Integrated => (512, 4),
            Kind::Software => (8, 4),
        };
        let most = match columns {
            1 if !gated => lone,
            2..=4 if !gated => 4,
            _ => 2,
        };
        let rows = [4, 2, 1].into_iter().find(|rows| *rows <= most && total / rows >= wanted).unwrap_or(1);
        let ahead = match columns {
            1 if push.cols >= 8192 => 2,
            2 => most / rows,
            _ => 1,
        };
        (rows, ahead, SUBGROUPS, 0)
    }

    /// The same where each workgroup makes the row of activations: `total` rows of the weight of `width`, `joined` where
    /// gate and up end in bytes. There workgroups are as many as find a place at once, and last; but where a block takes
    /// more to unpack than one of Q4_0 that costs some percent, and is done only where many workgroups would make the row.
    /// Measured on 132 multiprocessors, with Q4_0 and Q4_K.
    fn prologue_rule(&self, is_q4_0: bool, (total, width): (u32, u32), joined: bool) -> Rows {
        let places = self.capabilities.processors.map_or(u32::MAX, |count| 2 * count);
        let is_wide = self.capabilities.workgroup >= 2 * PROLOGUE_SUBGROUPS * self.capabilities.subgroup;
        let passing = (2, 1, PROLOGUE_SUBGROUPS, 0);
        match joined {
            true if is_wide
                && places < u32::MAX
                && (is_q4_0 || self.row_traffic((total, width), passing) > 48_000_000) =>
            {
                (1, 1, 2 * PROLOGUE_SUBGROUPS, 64)
            }
            true => passing,
            false if total / PROLOGUE_SUBGROUPS > places => passing,
            false => (1, 1, PROLOGUE_SUBGROUPS, 0),
        }
    }

    /// What workgroups that make the row of activations read: of it, of what is added, and of two norms.
    fn row_traffic(&self, (total, width): (u32, u32), rule: Rows) -> u64 {
        u64::from(self.workgroups(total, rule)) * u64::from(width) * 16
    }

    /// Workgroups of a variant of a product with few rows, where the weight has so many.
    fn workgroups(&self, total: u32, (rows, _, subgroups, resident): Rows) -> u32 {
        let needed = total.div_ceil(rows * subgroups);
        match self.capabilities.processors.map_or(0, |count| count * (resident / subgroups)) {
            0 => needed,
            most => needed.min(most),
        }
    }

    /// Whether the operation after the one that makes `out` is its only reader, and products of this method.
    pub(crate) fn wants(&self, next: Option<&Operation>, out: &Matrix, method: Method) -> bool {
        let Some(Operation::Product(product)) = next else { return false };
        let count = self.count(out.rows);
        product.x == *out
            && product.addend.is_none()
            && product.norm.is_none()
            && !product.input_is_read
            && out.width.is_multiple_of(32)
            && product.linears.iter().all(|linear| self.method(linear, out.width, count) == method)
    }

    /// Where prepared inputs of a form lie, and their scales.
    pub(crate) fn prepared_ranges(&self, form: u32, count: u32, width: u32) -> [std::ops::Range<u64>; 2] {
        let (rows, element, scales) = match form {
            // Of sixteen rows together.
            form::FRAGMENTS => (count.next_multiple_of(16), 2, u64::from(count) * 8),
            form::HALVES => (count, 2, u64::from(count) * 8),
            _ => (count, 1, u64::from(count) * u64::from(width) / 4),
        };
        let bytes = u64::from(rows) * u64::from(width) * element;
        let Addresses { quants: at, scales: beside, .. } = *self.addresses;
        [at..at + bytes, beside..beside + scales]
    }

    /// Where `out` lies as bytes, and its scales.
    pub(crate) fn made(&self, out: &Matrix) -> (u64, u64) {
        let bytes = u64::from(self.count(out.rows)) * u64::from(out.width);
        (self.addresses.made, self.addresses.made + bytes.next_multiple_of(16))
    }

    pub(crate) fn made_ranges(&self, out: &Matrix) -> [std::ops::Range<u64>; 2] {
        let (quants, scales) = self.made(out);
        let bytes = u64::from(self.count(out.rows)) * u64::from(out.width);
        [quants..quants + bytes, scales..scales + bytes / 4]
    }
}

/// What a kernel does beside its products, as far as it takes time: tuning tells kernels apart by it.
fn beside(method: Method, parts: &[&LinearAt], what: u32, input: &Input<'_>) -> String {
    let mut text = match what {
        epilogue::STORE if parts.len() > 1 => format!(" of {}", parts.len()),
        epilogue::STORE => String::new(),
        epilogue::RESIDUAL => " added".to_owned(),
        epilogue::GATED => " gated".to_owned(),
        _ => " gated to bytes".to_owned(),
    };
    let in_floats = method == Method::Gemv { integer: false } && !parts[0].format.is_float();
    for (holds, words) in
        [(parts[0].bias.is_some(), " biased"), (input.prologue.is_some(), " normed"), (in_floats, " in floats")]
    {
        text.push_str(if holds { words } else { "" });
    }
    text
}
