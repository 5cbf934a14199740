//! Which nodes become one kernel, or a few that belong together: a stage cut into groups of consecutive nodes.
//!
//! - *Product*: what leads to the input of products (a sum of residuals, the choice of wanted rows, norms), the products
//!   that read it, and what becomes of them: the gate's activation, or the residual sum.
//! - *Heads*: norms of heads, rotation, and the cache.
//! - *One*: any other operation by itself.
//!
//! Values between the nodes of a group keep their places in the arena, so that a group can as well be run kernel by
//! kernel. A value that someone outside the group reads, or that leaves the graph, is written.

use std::ops::Range;

use graph::{Activation, CacheId, Graph, Op, ValueId, WeightId};

/// A group of nodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) nodes: Range<usize>,
    pub(crate) kind: Kind,
}

/// What a group does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// One operation.
    One,
    /// Products of one input.
    Product(Product),
    /// Heads between their products and attention.
    Heads(Heads),
}

/// A norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norm {
    pub(crate) weight: WeightId,
    pub(crate) eps: f32,
    pub(crate) offset: f32,
}

/// Products with what comes before and after.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Product {
    /// Left side of the sum, or the input itself.
    pub(crate) x: ValueId,
    /// What is added to it, and its norm.
    pub(crate) addend: Option<(ValueId, Option<Norm>)>,
    /// The sum, where there is one that is kept.
    pub(crate) sum: Option<ValueId>,
    /// Whether only the wanted rows go on to the norm; there is one then.
    pub(crate) selects: bool,
    /// The norm before the products.
    pub(crate) norm: Option<Norm>,
    /// What the products read.
    pub(crate) input: ValueId,
    /// Whether others read it too.
    pub(crate) input_is_read: bool,
    pub(crate) linears: Vec<Linear>,
    pub(crate) after: After,
}

/// A product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Linear {
    pub(crate) weight: WeightId,
    pub(crate) bias: Option<WeightId>,
    pub(crate) out: ValueId,
}

/// What becomes of products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum After {
    /// Nothing.
    Nothing,
    /// The first, through the activation, times the second.
    Gated {
        /// The activation.
        kind: Activation,
        /// The activated gate.
        activated: ValueId,
        /// The result.
        out: ValueId,
    },
    /// The only product, added to a residual.
    Residual {
        /// What it is added to.
        residual: ValueId,
        /// The sum.
        out: ValueId,
    },
}

/// Heads of queries, keys and values, some of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heads {
    pub(crate) parts: Vec<HeadPart>,
    pub(crate) head_dim: usize,
    pub(crate) cache: Option<CacheId>,
    /// The node whose rope table all parts that turn share.
    pub(crate) rope: Option<usize>,
    pub(crate) eps: f32,
    /// The node after them: attention of these queries, which nobody else reads.
    pub(crate) attention: Option<usize>,
}

/// One of queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HeadPart {
    pub(crate) source: ValueId,
    pub(crate) norm: Option<Norm>,
    pub(crate) turns: bool,
    pub(crate) target: Target,
}

/// Where a part of heads goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// To a value.
    Value(ValueId),
    /// To the keys of the cache.
    Keys,
    /// To the values of the cache.
    Values,
}

/// Cuts consecutive nodes into groups.
pub(crate) fn groups(graph: &Graph, nodes: Range<usize>) -> Vec<Group> {
    let fuser = Fuser { graph, readers: readers(graph), end: nodes.end };
    let mut groups = Vec::new();
    let mut at = nodes.start;
    while at < nodes.end {
        let found = fuser.product(at).or_else(|| fuser.heads(at));
        let (kind, end) = found.unwrap_or((Kind::One, at + 1));
        groups.push(Group { nodes: at..end, kind });
        at = end;
    }
    groups
}

/// The group of every node of a run, counted from 0.
pub(crate) fn phase_indices(graph: &Graph, nodes: Range<usize>) -> Vec<usize> {
    let groups = groups(graph, nodes);
    groups.iter().enumerate().flat_map(|(index, group)| group.nodes.clone().map(move |_| index)).collect()
}

/// For each value the nodes that read it.
fn readers(graph: &Graph) -> Vec<Vec<usize>> {
    let mut readers = vec![Vec::new(); graph.values().len()];
    for (index, node) in graph.nodes().iter().enumerate() {
        for value in node.op.inputs() {
            readers[value.index()].push(index);
        }
    }
    readers
}

struct Fuser<'a> {
    graph: &'a Graph,
    readers: Vec<Vec<usize>>,
    end: usize,
}

impl Fuser<'_> {
    fn op(&self, at: usize) -> Option<&Op> {
        (at < self.end).then(|| &self.graph.nodes()[at].op)
    }

    fn out(&self, at: usize) -> ValueId {
        self.graph.nodes()[at].output.expect("this operation makes a value")
    }

    /// Whether a value is read by nodes of a range alone.
    fn is_inside(&self, value: ValueId, nodes: Range<usize>) -> bool {
        !self.graph.is_output(value) && self.readers[value.index()].iter().all(|reader| nodes.contains(reader))
    }

    /// A norm of whole rows with a weight.
    fn row_norm(&self, at: usize) -> Option<(ValueId, Norm)> {
        match *self.op(at)? {
            Op::RmsNorm { x, weight: Some(weight), group, eps, offset } if group == self.graph.value(x).width => {
                Some((x, Norm { weight, eps, offset }))
            }
            _ => None,
        }
    }

    /// Whether the wanted rows of the last value are taken at node `at`, and only normed then.
    fn selects(&self, at: usize, last: Option<ValueId>) -> Option<ValueId> {
        let Some(&Op::SelectOutputs { x }) = self.op(at) else { return None };
        let (input, _) = self.row_norm(at + 1)?;
        let hidden = last.is_none_or(|last| last == x && self.is_inside(last, at..at + 1));
        (hidden && input == self.out(at) && self.is_inside(input, at + 1..at + 2)).then_some(x)
    }

    /// A product with what leads to it, from node `at` on: `[norm] [add] [select] [norm] linear...`, each reading the one
    /// before.
    fn product(&self, at: usize) -> Option<(Kind, usize)> {
        let (mut next, mut x, mut addend, mut sum, mut norm) = (at, None, None, None, None);
        // The norm of what is added belongs to the sum, if the sum is next and its only reader.
        if let (Some((y, first)), Some(Op::Add { a, b })) = (self.row_norm(at), self.op(at + 1)) {
            let normed = self.out(at);
            let other = if *b == normed { *a } else { *b };
            if (*a == normed) != (*b == normed) && self.is_inside(normed, at + 1..at + 2) {
                (next, x, addend) = (at + 2, Some(other), Some((y, Some(first))));
                sum = Some(self.out(at + 1));
            }
        } else if let Some(Op::Add { a, b }) = self.op(at) {
            (next, x, addend) = (at + 1, Some(*a), Some((*b, None)));
            sum = Some(self.out(at));
        }
        let selected = self.selects(next, sum);
        if let Some(all) = selected {
            (next, x, sum) = (next + 1, x.or(Some(all)), None);
        }
        if let Some((input, second)) = self.row_norm(next)
            && sum.is_none_or(|sum| sum == input)
        {
            x = x.or(Some(input));
            norm = Some(second);
            next += 1;
        }
        // What the products must read for the group to hold together: the last value made so far.
        let made = (next > at).then(|| self.out(next - 1));
        let Op::Linear { x: first_input, .. } = *self.op(next)? else { return None };
        if made.is_some_and(|made| made != first_input) {
            return None;
        }
        let first = next;
        let mut linears = Vec::new();
        while let Some(&Op::Linear { x, weight, bias }) = self.op(next) {
            if x != first_input {
                break;
            }
            linears.push(Linear { weight, bias, out: self.out(next) });
            next += 1;
        }
        let (after, end) = self.after(&linears, next);
        let input_is_read = !self.is_inside(first_input, first..next);
        let product = Product {
            x: x.unwrap_or(first_input),
            addend,
            sum,
            selects: selected.is_some(),
            norm,
            input: first_input,
            input_is_read,
            linears,
            after,
        };
        Some((Kind::Product(product), end))
    }

    fn after(&self, linears: &[Linear], at: usize) -> (After, usize) {
        match (linears, self.op(at), self.op(at + 1)) {
            ([gate, up], Some(&Op::Activate { x, kind }), Some(&Op::Mul { a, b })) if x == gate.out => {
                let activated = self.out(at);
                let is_gated = (a, b) == (activated, up.out) || (a, b) == (up.out, activated);
                let nodes = at..at + 2;
                let hidden =
                    [gate.out, up.out, activated].into_iter().all(|value| self.is_inside(value, nodes.clone()));
                if is_gated && hidden {
                    return (After::Gated { kind, activated, out: self.out(at + 1) }, at + 2);
                }
            }
            ([one], Some(&Op::Add { a, b }), _)
                if (a == one.out) != (b == one.out) && self.is_inside(one.out, at..at + 1) =>
            {
                let residual = if a == one.out { b } else { a };
                return (After::Residual { residual, out: self.out(at) }, at + 1);
            }
            _ => {}
        }
        (After::Nothing, at)
    }

    /// Heads from node `at` on: norms of heads and rotations, and the write to the cache that takes up keys and values.
    fn heads(&self, at: usize) -> Option<(Kind, usize)> {
        let is_part = |op: &Op| match op {
            Op::Rope { .. } | Op::KvWrite { .. } => true,
            Op::RmsNorm { x, weight, group, .. } => weight.is_some() && *group < self.graph.value(*x).width,
            _ => false,
        };
        let mut end = at;
        while self.op(end).is_some_and(is_part) {
            end += 1;
            if matches!(self.op(end - 1), Some(Op::KvWrite { .. })) {
                break;
            }
        }
        let mut last = end;
        // The longest run that makes sense; a single norm is left to the kernel of norms.
        while last > at {
            if let Some(mut heads) = self.parse_heads(at..last) {
                heads.attention = self.attention_of(&heads, last);
                let end = heads.attention.map_or(last, |at| at + 1);
                return Some((Kind::Heads(heads), end));
            }
            last -= 1;
        }
        None
    }

    /// Whether node `at` is attention of queries that only it reads, over keys and values that these heads end in.
    fn attention_of(&self, heads: &Heads, at: usize) -> Option<usize> {
        let Some(Op::Attention { cache, q, .. }) = self.op(at) else { return None };
        let [queries, keys, values] = &heads.parts[..] else { return None };
        let whole = (queries.target, keys.target, values.target) == (Target::Value(*q), Target::Keys, Target::Values)
            && !values.turns
            && values.norm.is_none();
        (whole && heads.cache == Some(*cache) && self.is_inside(*q, at..at + 1)).then_some(at)
    }

    fn parse_heads(&self, nodes: Range<usize>) -> Option<Heads> {
        let mut taken = 0;
        // Back from a value through a rotation and a norm that only it needs.
        let mut chain = |value: ValueId, target: Target, last: Option<usize>| {
            let maker = |value: ValueId| nodes.clone().find(|at| self.graph.nodes()[*at].output == Some(value));
            let mut part = HeadPart { source: value, norm: None, turns: false, target };
            let mut rope = None;
            let mut reader = last;
            let mut own = |at: usize, reader: Option<usize>| {
                let hidden = reader.is_none_or(|reader| self.is_inside(self.out(at), reader..reader + 1));
                taken += usize::from(hidden);
                hidden
            };
            if let Some(at) = maker(part.source)
                && let Op::Rope { x, .. } = self.graph.nodes()[at].op
                && own(at, reader)
            {
                (part.source, part.turns, rope, reader) = (x, true, Some(at), Some(at));
            }
            if let Some(at) = maker(part.source)
                && let Op::RmsNorm { x, weight: Some(weight), eps, offset, .. } = self.graph.nodes()[at].op
                && own(at, reader)
            {
                part.norm = Some(Norm { weight, eps, offset });
                part.source = x;
            }
            (part, rope)
        };
        let write = nodes.end - 1;
        let mut found = Vec::new();
        let mut cache = None;
        let mut count = 0;
        if let Op::KvWrite { cache: id, k, v } = self.graph.nodes()[write].op {
            found.push(chain(k, Target::Keys, Some(write)));
            found.push(chain(v, Target::Values, Some(write)));
            cache = Some(id);
            count = 1;
            // Queries: the last value made here that is not the cache's.
            let used: Vec<ValueId> = vec![k, v];
            let queries = nodes.clone().rev().skip(1).find(|at| {
                let out = self.graph.nodes()[*at].output;
                matches!(self.graph.nodes()[*at].op, Op::Rope { .. }) && out.is_some_and(|out| !used.contains(&out))
            });
            if let Some(at) = queries {
                found.insert(0, chain(self.out(at), Target::Value(self.out(at)), None));
            }
        } else {
            if !matches!(self.graph.nodes()[write].op, Op::Rope { .. }) {
                return None;
            }
            found.push(chain(self.out(write), Target::Value(self.out(write)), None));
        }
        if taken + count != nodes.len() {
            return None;
        }
        self.agree(found, cache)
    }

    /// The parts as one kernel, where they have one size of head, one rope table and one epsilon.
    fn agree(&self, found: Vec<(HeadPart, Option<usize>)>, cache: Option<CacheId>) -> Option<Heads> {
        let mut head_dim = cache.map(|cache| self.graph.cache(cache).head_dim);
        let mut rope: Option<usize> = None;
        let mut eps: Option<f32> = None;
        for (part, turned) in &found {
            if let Some(at) = turned {
                let Op::Rope { head_dim: own, table, .. } = &self.graph.nodes()[*at].op else { return None };
                if *head_dim.get_or_insert(*own) != *own {
                    return None;
                }
                let known = *rope.get_or_insert(*at);
                let Op::Rope { table: known, .. } = &self.graph.nodes()[known].op else { return None };
                if known != table {
                    return None;
                }
            }
            if let Some(norm) = part.norm
                && *eps.get_or_insert(norm.eps) != norm.eps
            {
                return None;
            }
        }
        let head_dim = head_dim?;
        for (part, _) in &found {
            let fits = |norm: Norm| self.graph.weight(norm.weight).cols == head_dim;
            if part.norm.is_some_and(|norm| !fits(norm))
                || !self.graph.value(part.source).width.is_multiple_of(head_dim)
            {
                return None;
            }
        }
        let parts = found.into_iter().map(|(part, _)| part).collect();
        Some(Heads { parts, head_dim, cache, rope, eps: eps.unwrap_or(0.0), attention: None })
    }
}
