//! From a share of a plan to a program: packs weights, gives values their places, turns groups into operations.

use std::collections::HashMap;

use graph::{DeviceError, Graph, Op, Share, Stage, ValueId, WeightId};

use crate::{
    Vulkan,
    error::VulkanError,
    fuse::{self, After, Group, Kind, Norm, Target},
    inbox::{InboxLayout, TileList},
    kernels::{self, elementwise},
    list::Addresses,
    memory::{self, Buffer, Place, Slabs, Want, rounded},
    operation::{AfterAt, AttentionAt, HeadPartAt, HeadsAt, LinearAt, Matrix, NormAt, Operation, ProductAt, RopeAt},
    pack::{Format, Layout},
    program::{CacheAt, HostValue, OutValue, StageProgram, VulkanProgram},
    room::{self, Room},
    upload::Uploader,
};

/// Bytes a matrix takes on the device.
pub(crate) fn matrix_bytes(weight: &graph::Weight, arithmetic: graph::Arithmetic) -> u64 {
    rounded(Layout::of(weight, arithmetic).bytes as u64)
}

/// Bytes a vector takes.
pub(crate) fn vector_bytes(elements: usize) -> u64 {
    rounded(elements as u64 * 4)
}

/// Compiles a share; `progress` hears the bytes of weights packed so far.
pub(crate) fn compile(
    vulkan: &Vulkan,
    share: &Share<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<VulkanProgram, DeviceError> {
    let mut compiler = Compiler::new(vulkan, share);
    compiler.weights(progress)?;
    let memory = compiler.memory().map_err(|error| compiler.fail(error, "activations and the KV cache", 0))?;
    let stages = share.stages.iter().map(|stage| compiler.stage(stage, &memory)).collect();
    Ok(compiler.finish(memory, stages))
}

/// Memory of a program beside its weights.
struct ProgramMemory {
    slabs: Slabs,
    slots: Vec<Place>,
    caches: Vec<Option<[Place; 2]>>,
    quants: Place,
    scales: Place,
    made: Place,
    partial: Place,
    top: Place,
    layout: InboxLayout,
    lists: Vec<TileList>,
    /// Values the processor writes, in the order of the layout.
    host_values: Vec<ValueId>,
    inbox: Buffer,
    /// Where the kernels read the inbox, where that is another buffer.
    mirror: Option<Buffer>,
    outbox: Buffer,
    /// Values that leave, with their begin in the outbox.
    out_values: Vec<(ValueId, u64)>,
}

struct Compiler<'a, 'b> {
    vulkan: &'a Vulkan,
    share: &'a Share<'b>,
    groups: Vec<Vec<Group>>,
    matrices: HashMap<WeightId, (Place, Format)>,
    /// Vectors by what was added to them (the bits of an `f32`); ones by their length.
    vectors: HashMap<(WeightId, u32), Place>,
    ones: HashMap<usize, Place>,
    frequencies: Vec<(std::sync::Arc<graph::RopeTable>, Place)>,
    weight_slabs: Option<Slabs>,
}

impl<'a, 'b> Compiler<'a, 'b> {
    fn new(vulkan: &'a Vulkan, share: &'a Share<'b>) -> Compiler<'a, 'b> {
        let groups = share.stages.iter().map(|stage| fuse::groups(share.graph, stage.nodes.clone())).collect();
        Compiler {
            vulkan,
            share,
            groups,
            matrices: HashMap::new(),
            vectors: HashMap::new(),
            ones: HashMap::new(),
            frequencies: Vec::new(),
            weight_slabs: None,
        }
    }

    fn fail(&self, error: VulkanError, what: &str, bytes: u64) -> DeviceError {
        self.vulkan.fail(error, what, bytes)
    }

    fn nodes(&self) -> impl Iterator<Item = &'b graph::Node> + use<'b> {
        let graph: &'b Graph = self.share.graph;
        let ranges: Vec<_> = self.share.stages.iter().map(|stage| stage.nodes.clone()).collect();
        ranges.into_iter().flat_map(move |range| graph.nodes()[range].iter())
    }

    /// Packs every weight of the share into slabs.
    fn weights(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), DeviceError> {
        let graph = self.share.graph;
        let mut matrices: Vec<WeightId> = Vec::new();
        let mut vectors: Vec<(WeightId, f32)> = Vec::new();
        let mut ones: Vec<usize> = Vec::new();
        let mut tables: Vec<std::sync::Arc<graph::RopeTable>> = Vec::new();
        for node in self.nodes() {
            match &node.op {
                Op::Linear { weight, bias, .. } => {
                    push_new(&mut matrices, *weight);
                    bias.iter().for_each(|bias| push_new(&mut vectors, (*bias, 0.0)));
                }
                Op::RmsNorm { weight: Some(weight), offset, .. } => push_new(&mut vectors, (*weight, *offset)),
                Op::RmsNorm { weight: None, group, .. } => push_new(&mut ones, *group),
                Op::Rope { table, .. } => push_new(&mut tables, table.clone()),
                _ => {}
            }
        }
        let arithmetic = self.share.arithmetic;
        let vector_len = |id: &WeightId| graph.weight(*id).rows * graph.weight(*id).cols;
        let places: Vec<u64> = matrices
            .iter()
            .map(|id| matrix_bytes(graph.weight(*id), arithmetic))
            .chain(vectors.iter().map(|(id, _)| vector_bytes(vector_len(id))))
            .chain(ones.iter().map(|len| vector_bytes(*len)))
            .chain(tables.iter().map(|table| vector_bytes(table.inv_freq.len())))
            .collect();
        let expected = places.iter().sum();
        let context = &self.vulkan.context;
        let want = if context.capabilities.unified { Want::DeviceFromHost } else { Want::Device };
        let mut slabs = Slabs::new(context, want, places);
        let mut uploader = Uploader::new(context, arithmetic);
        let mut done = 0;
        for id in matrices {
            let weight = graph.weight(id);
            let bytes = matrix_bytes(weight, arithmetic);
            let place = slabs.take(bytes).map_err(|error| self.fail(error, &weight.name, bytes))?;
            uploader.matrix(&mut slabs, place, weight).map_err(|error| self.fail(error, &weight.name, bytes))?;
            self.matrices.insert(id, (place, Format::of(weight.dtype, arithmetic)));
            done += weight.data.len() as u64;
            progress(done);
        }
        let mut words = |values: &[f32]| -> Result<Place, VulkanError> {
            let place = slabs.take(values.len() as u64 * 4)?;
            uploader.words(&mut slabs, place, values)?;
            Ok(place)
        };
        let what = "norms, biases and frequencies";
        for (id, offset) in vectors {
            let values: Vec<f32> = graph.weight(id).decode().into_iter().map(|value| value + offset).collect();
            let place = words(&values).map_err(|error| self.vulkan.fail(error, what, expected))?;
            self.vectors.insert((id, offset.to_bits()), place);
        }
        for len in ones {
            let place = words(&vec![1.0; len]).map_err(|error| self.vulkan.fail(error, what, expected))?;
            self.ones.insert(len, place);
        }
        for table in tables {
            let place = words(&table.inv_freq).map_err(|error| self.vulkan.fail(error, what, expected))?;
            self.frequencies.push((table, place));
        }
        uploader.finish().map_err(|error| self.fail(error, "weights", expected))?;
        self.weight_slabs = Some(slabs);
        Ok(())
    }

    fn memory(&self) -> Result<ProgramMemory, VulkanError> {
        let context = &self.vulkan.context;
        let room = Room::of(context, self.share);
        let mut slabs = Slabs::new(context, Want::Device, room.places());
        let Room {
            slots,
            caches,
            quants,
            scales,
            made,
            partial,
            top,
            lists,
            layout,
            host_values,
            out_values,
            inbox,
            outbox,
        } = room;
        let slots = slots.iter().map(|bytes| slabs.take(*bytes)).collect::<Result<_, _>>()?;
        let mut cache = |bytes| Ok::<_, VulkanError>([slabs.take(bytes)?, slabs.take(bytes)?]);
        let caches = caches.into_iter().map(|bytes| bytes.map(&mut cache).transpose()).collect::<Result<_, _>>()?;
        let (quants, scales) = (slabs.take(quants)?, slabs.take(scales)?);
        let (made, partial, top) = (slabs.take(made)?, slabs.take(partial)?, slabs.take(top)?);
        // What nobody has written yet reads as zeros, the same in every run.
        context.run_once(|commands| {
            for slab in &slabs.buffers {
                // SAFETY: the buffer is being recorded, and the range is the whole slab.
                unsafe { context.device.cmd_fill_buffer(commands, slab.raw, 0, ash::vk::WHOLE_SIZE, 0) };
            }
        })?;

        let mirror = match memory::is_local_from_host(context) {
            true => None,
            false => Some(Buffer::new(context, inbox, Want::Device)?),
        };
        let inbox = Buffer::new(context, inbox, Want::DeviceFromHost)?;
        let outbox = Buffer::new(context, outbox, Want::HostReads)?;
        Ok(ProgramMemory {
            slabs,
            slots,
            caches,
            quants,
            scales,
            made,
            partial,
            top,
            layout,
            lists,
            host_values,
            inbox,
            mirror,
            outbox,
            out_values,
        })
    }

    fn matrix(&self, value: ValueId, memory: &ProgramMemory) -> Matrix {
        let of = self.share.graph.value(value);
        let address = match memory.host_values.iter().position(|own| *own == value) {
            Some(index) => memory.read_address() + memory.layout.values[index],
            None => {
                let slot = self.share.arena.slot(value).expect("a value of this device has a slot");
                memory.slots[slot].address
            }
        };
        Matrix { address, width: of.width as u32, rows: of.rows }
    }

    fn vector(&self, weight: WeightId, offset: f32) -> u64 {
        self.vectors[&(weight, offset.to_bits())].address
    }

    fn norm(&self, norm: Norm) -> NormAt {
        NormAt { weight: self.vector(norm.weight, norm.offset), eps: norm.eps }
    }

    fn stage(&self, stage: &Stage, memory: &ProgramMemory) -> StageProgram {
        let index = self.share.stages.iter().position(|own| std::ptr::eq(*own, stage)).expect("a stage of the share");
        let graph = self.share.graph;
        let mut operations = Vec::new();
        let mut embeds = Vec::new();
        for group in &self.groups[index] {
            match &group.kind {
                Kind::Product(product) => operations.push(self.product(product, memory)),
                Kind::Heads(heads) => {
                    let own = self.heads(heads, memory);
                    let attention = heads.attention.map(|at| self.one(&graph.nodes()[at], memory));
                    operations.push(match attention {
                        Some(Operation::Attention(attention)) => Operation::Attend(own, attention),
                        _ => Operation::Heads(own),
                    });
                }
                Kind::One => {
                    let node = &graph.nodes()[group.nodes.start];
                    if let (Op::Embed { table, scale }, Some(out)) = (&node.op, node.output) {
                        let weight = graph.weight(*table);
                        match self.matrices.get(table).filter(|(_, format)| format.is_of(weight.dtype)) {
                            Some((place, format)) => operations.push(Operation::Embed {
                                weight: place.address,
                                format: *format,
                                rows: weight.rows as u32,
                                factor: *scale,
                                out: self.matrix(out, memory),
                            }),
                            None => embeds.push((weight.clone(), *scale, self.host_value(out, memory))),
                        }
                    } else {
                        operations.push(self.one(node, memory));
                    }
                }
            }
        }
        let outputs = stage.outputs.iter().map(|value| {
            let at = memory.out_values.iter().find(|(own, _)| own == value).expect("listed above").1;
            let is_logits = *value == graph.logits();
            OutValue { value: *value, matrix: self.matrix(*value, memory), outbox: at, is_logits }
        });
        StageProgram {
            inputs: stage.inputs.iter().map(|value| (*value, self.host_value(*value, memory))).collect(),
            embeds,
            outputs: outputs.collect(),
            operations,
        }
    }

    fn host_value(&self, value: ValueId, memory: &ProgramMemory) -> HostValue {
        let index = memory.host_values.iter().position(|own| *own == value).expect("listed with the memory");
        let of = self.share.graph.value(value);
        HostValue { at: memory.layout.values[index], width: of.width, rows: of.rows }
    }

    fn product(&self, product: &fuse::Product, memory: &ProgramMemory) -> Operation {
        let matrix = |value: ValueId| self.matrix(value, memory);
        let linear = |linear: &fuse::Linear| {
            let (place, format) = self.matrices[&linear.weight];
            LinearAt {
                weight: place.address,
                format,
                bias: linear.bias.map(|bias| self.vector(bias, 0.0)),
                out: matrix(linear.out),
            }
        };
        let after = match product.after {
            After::Nothing => AfterAt::Nothing,
            After::Gated { kind, out, .. } => AfterAt::Gated { kind, out: matrix(out) },
            After::Residual { residual, out } => AfterAt::Residual { residual: matrix(residual), out: matrix(out) },
        };
        Operation::Product(ProductAt {
            x: matrix(product.x),
            addend: product.addend.map(|(y, norm)| (matrix(y), norm.map(|norm| self.norm(norm)))),
            sum: product.sum.map(matrix),
            selects: product.selects,
            norm: product.norm.map(|norm| self.norm(norm)),
            input: matrix(product.input),
            input_is_read: product.input_is_read,
            linears: product.linears.iter().map(linear).collect(),
            after,
        })
    }

    fn heads(&self, heads: &fuse::Heads, memory: &ProgramMemory) -> HeadsAt {
        let cache = heads.cache.map(|id| {
            let places = memory.caches[id.index()].expect("a cache that is written lies here");
            (self.share.graph.cache(id), places)
        });
        let part = |part: &fuse::HeadPart| {
            let in_cache = |half: usize| {
                let (cache, places) = cache.expect("keys and values go to a cache");
                (places[half].address, Some(room::key_bytes(self.share, cache)))
            };
            let (target, cache_bytes) = match part.target {
                Target::Value(value) => (self.matrix(value, memory).address, None),
                Target::Keys => in_cache(0),
                Target::Values => in_cache(1),
            };
            HeadPartAt {
                source: self.matrix(part.source, memory),
                norm: part.norm.map(|norm| self.vector(norm.weight, norm.offset)),
                turns: part.turns,
                target,
                cache_bytes,
            }
        };
        HeadsAt {
            parts: heads.parts.iter().map(part).collect(),
            head_dim: heads.head_dim as u32,
            rope: heads.rope.map(|at| self.rope(at)),
            eps: heads.eps,
            group: cache.map_or(0, |(cache, _)| cache.group),
            kv: self.share.kv.dtype,
        }
    }

    fn rope(&self, node: usize) -> RopeAt {
        let Op::Rope { table, .. } = &self.share.graph.nodes()[node].op else {
            unreachable!("the group names a rotation")
        };
        let (_, place) = self.frequencies.iter().find(|(own, _)| own == table).expect("uploaded with the weights");
        RopeAt {
            frequencies: place.address,
            pairs: table.inv_freq.len() as u32,
            magnitude: table.magnitude,
            neighbours: table.pairs == graph::RopePairs::Neighbours,
        }
    }

    fn one(&self, node: &graph::Node, memory: &ProgramMemory) -> Operation {
        let matrix = |value: ValueId| self.matrix(value, memory);
        let out = || matrix(node.output.expect("this operation makes a value"));
        let element = |op, kind, factor, a, b: Option<ValueId>| Operation::Element {
            op,
            kind,
            factor,
            a: matrix(a),
            b: b.map(matrix),
            out: out(),
        };
        match &node.op {
            Op::RmsNorm { x, weight, group, eps, offset } => {
                let weight = match weight {
                    Some(weight) => self.vector(*weight, *offset),
                    None => self.ones[group].address,
                };
                let norm = NormAt { weight, eps: *eps };
                Operation::Norm { x: matrix(*x), norm, group: *group as u32, out: out() }
            }
            Op::Attention { cache: id, q, scale, softcap } => {
                let cache = self.share.graph.cache(*id);
                let [keys, values] = memory.caches[id.index()].expect("a cache that is read lies here");
                let list = room::tile_list(&self.vulkan.context, self.share, *id, *q);
                Operation::Attention(AttentionAt {
                    q: matrix(*q),
                    out: out(),
                    keys: keys.address,
                    values: values.address,
                    cache_bytes: room::key_bytes(self.share, cache),
                    head_dim: cache.head_dim as u32,
                    kv_heads: cache.kv_heads as u32,
                    window: cache.window.map(|window| u32::try_from(window).unwrap_or(u32::MAX)),
                    scale: *scale,
                    softcap: *softcap,
                    kv: self.share.kv.dtype,
                    list: memory.lists.iter().position(|own| *own == list).expect("listed with the memory"),
                })
            }
            Op::Add { a, b } => element(elementwise::ADD, 0, 0.0, *a, Some(*b)),
            Op::Mul { a, b } => element(elementwise::MUL, 0, 0.0, *a, Some(*b)),
            Op::Activate { x, kind } => element(elementwise::ACTIVATE, kernels::activation(*kind), 0.0, *x, None),
            Op::Scale { x, factor } => element(elementwise::SCALE, 0, *factor, *x, None),
            Op::SoftCap { x, cap } => element(elementwise::SOFT_CAP, 0, *cap, *x, None),
            Op::SelectOutputs { x } => Operation::Select { x: matrix(*x), out: out() },
            Op::Embed { .. } | Op::Linear { .. } | Op::Rope { .. } | Op::KvWrite { .. } => {
                unreachable!("part of a group, or written by the processor")
            }
        }
    }

    fn finish(self, memory: ProgramMemory, stages: Vec<StageProgram>) -> VulkanProgram {
        let base = memory.read_address();
        let addresses = Addresses {
            positions: base + memory.layout.positions,
            outputs: base + memory.layout.outputs,
            ids: base + memory.layout.ids,
            places: memory.layout.places.iter().map(|at| base + at).collect(),
            tiles: memory.layout.tiles.iter().map(|at| base + at).collect(),
            tables: base + memory.layout.tables,
            quants: memory.quants.address,
            scales: memory.scales.address,
            made: memory.made.address,
            partial: memory.partial.address,
            top: memory.top.address,
        };
        let graph = self.share.graph;
        let caches = graph.caches().iter().zip(&memory.caches).filter_map(|(cache, places)| {
            let block_bytes = room::key_bytes(self.share, cache) / (self.share.kv.blocks[cache.group] as u64).max(1);
            places.map(|places| CacheAt { group: cache.group, places, block_bytes })
        });
        VulkanProgram::new(
            self.vulkan,
            self.share.arithmetic,
            stages,
            crate::program::Owned {
                caches: caches.collect(),
                _weights: self.weight_slabs.expect("weights come first"),
                memory: memory.slabs,
                layout: memory.layout,
                lists: memory.lists,
                inbox: memory.inbox,
                mirror: memory.mirror,
                outbox: memory.outbox,
                addresses,
            },
        )
    }
}

impl ProgramMemory {
    /// Where kernels read the inbox.
    fn read_address(&self) -> u64 {
        self.mirror.as_ref().map_or(self.inbox.address, |mirror| mirror.address)
    }
}

pub(crate) fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}
