//! What the device reaches, measured.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ash::vk;
use graph::{Arithmetic, Rows};

use crate::{
    context::Context,
    error::VulkanError,
    kernels::{Dispatch, Stream},
    list::{Addresses, Bucket, Lister},
    memory::{Buffer, Want},
    operation::{AfterAt, LinearAt, Matrix, Operation, ProductAt},
    pack::Format,
    pipeline::PipelineKey,
    record,
    shaders::Shader,
};

/// Bytes read a pass: beyond every cache, but on a processor that plays a device.
const BYTES: u64 = 512 << 20;
const SOFTWARE_BYTES: u64 = 64 << 20;

/// A measurement lasts at least this long, so that a card that rested has come to its clock (an H100 read at 1.8 TB/s for
/// its first milliseconds, and then at 3.0).
const WARMTH: Duration = Duration::from_millis(150);

/// No pass of a measurement begins later than this.
const PATIENCE: Duration = Duration::from_millis(400);

/// Bytes a second that reading memory reaches: the best of several passes, as a roof should be.
pub(crate) fn read_bandwidth(context: &Arc<Context>) -> Result<f64, VulkanError> {
    let is_software = context.capabilities.kind == crate::Kind::Software;
    let bytes = if is_software { SOFTWARE_BYTES } else { BYTES };
    let source = Buffer::new(context, bytes, Want::Device)?;
    let result = Buffer::new(context, 256, Want::Device)?;
    let push = Stream { source: source.address, result: result.address, count: (bytes / 16) as u32, padding: 0 };
    let groups = if is_software { 64 } else { 4096 };
    let dispatch = Dispatch::new(Shader::Stream, vec![], &push, [groups, 1, 1]);
    let key = PipelineKey { shader: dispatch.shader, constants: vec![] };
    let pipeline = context.pipeline(key)?;
    let device = &context.device;
    context.run_once(|commands| {
        // SAFETY: the buffer is being recorded, and the range is the whole buffer.
        unsafe { device.cmd_fill_buffer(commands, source.raw, 0, vk::WHOLE_SIZE, 0x5a5a_1234) };
    })?;
    // Several passes a submit, so that the way to the device and back does not count.
    let passes = if is_software { 1 } else { 16 };
    let mut best = 0.0f64;
    let start = Instant::now();
    while start.elapsed() < WARMTH {
        let begin = Instant::now();
        context.run_once(|commands| {
            // SAFETY: the buffer is being recorded; the addresses are of buffers that live through the wait.
            unsafe {
                device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.raw);
                let stage = vk::ShaderStageFlags::COMPUTE;
                device.cmd_push_constants(commands, pipeline.layout, stage, 0, &dispatch.push);
                for _ in 0..passes {
                    device.cmd_dispatch(commands, groups, 1, 1);
                }
            }
        })?;
        best = best.max((bytes * passes) as f64 / begin.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// What kernels reach, and copies to the processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelRates {
    /// A product of a matrix of Q4_0 with many rows, by whatever kernel the device has for it, with what comes before:
    /// operations a second, a multiply-add counted as two.
    pub(crate) product_ops_per_s: f64,
    /// From its memory to the processor's.
    pub(crate) transfer_bytes_per_s: f64,
}

/// Rows and columns of the matrix that is multiplied.
const SIDE: u32 = 4096;

impl KernelRates {
    pub(crate) fn measure(context: &Arc<Context>) -> Result<KernelRates, VulkanError> {
        let (product_ops_per_s, transfer_bytes_per_s) = (product_rate(context)?, transfer_rate(context)?);
        Ok(KernelRates { product_ops_per_s, transfer_bytes_per_s })
    }
}

/// A product with 512 rows, the best of several passes; a processor that plays a device gets fewer.
fn product_rate(context: &Arc<Context>) -> Result<f64, VulkanError> {
    let rows = if context.capabilities.kind == crate::Kind::Software { 32 } else { 512 };
    let floats = u64::from(rows) * u64::from(SIDE) * 4;
    let weight = Format::Q4_0.bytes(u64::from(SIDE), SIDE);
    // Weights, activations, results; activations in the form that the kernel reads, and their scales.
    let buffer = Buffer::new(context, weight.next_multiple_of(256) + 4 * floats, Want::Device)?;
    let x = buffer.address + weight.next_multiple_of(256);
    let matrix = |address| Matrix { address, width: SIDE, rows: Rows::Tokens };
    let linear = LinearAt { weight: buffer.address, format: Format::Q4_0, bias: None, out: matrix(x + floats) };
    let product = ProductAt {
        x: matrix(x),
        addend: None,
        sum: None,
        selects: false,
        norm: None,
        input: matrix(x),
        input_is_read: false,
        linears: vec![linear],
        after: AfterAt::Nothing,
    };
    let bucket = Bucket { stage: 0, tokens: rows, outputs: 0, tiles: vec![], many: true, longest: rows, top: 0 };
    let addresses = Addresses { quants: x + 2 * floats, scales: x + 3 * floats, ..Addresses::default() };
    let mut lister = Lister {
        capabilities: &context.capabilities,
        arithmetic: Arithmetic::Fast,
        tuning: &context.tuning,
        bucket: &bucket,
        addresses: &addresses,
        list: Vec::new(),
        made: None,
        halved: None,
    };
    lister.add(&[Operation::Product(product)]);
    let list = lister.list;
    let key = |dispatch: &Dispatch| PipelineKey { shader: dispatch.shader, constants: dispatch.constants.clone() };
    let pipelines =
        list.iter().map(|dispatch| context.pipeline(key(dispatch))).collect::<Result<Vec<_>, VulkanError>>()?;
    let device = &context.device;
    context.run_once(|commands| {
        // SAFETY: the buffer is being recorded, and the range is the whole buffer. The words are scales and floats of
        // ordinary size.
        unsafe { device.cmd_fill_buffer(commands, buffer.raw, 0, vk::WHOLE_SIZE, 0x2c1a_2c1a) };
    })?;
    let ops = 2.0 * f64::from(SIDE) * f64::from(SIDE) * f64::from(rows);
    let (start, mut best, mut passes) = (Instant::now(), 0.0f64, 1);
    while start.elapsed() < PATIENCE {
        let begin = Instant::now();
        context.run_once(|commands| {
            for (dispatch, pipeline) in (0..passes).flat_map(|_| list.iter().zip(&pipelines)) {
                // SAFETY: the buffer is being recorded; the addresses are of a buffer that lives through the wait and has
                // room for what the dispatches write.
                unsafe { record::dispatch(device, commands, pipeline, dispatch) };
            }
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        best = best.max(ops * f64::from(passes) / seconds);
        // Passes enough that the way to the device and back does not count.
        passes = ((f64::from(passes) * 0.03 / seconds) as u32).clamp(1, 256);
    }
    Ok(best)
}

/// Copying what a step of logits has, and more, and reading it.
fn transfer_rate(context: &Arc<Context>) -> Result<f64, VulkanError> {
    const BYTES: u64 = 16 << 20;
    let source = Buffer::new(context, BYTES, Want::Device)?;
    let mut target = Buffer::new(context, BYTES, Want::HostReads)?;
    let mut own = vec![0u8; BYTES as usize];
    let mut best = 0.0f64;
    for _ in 0..4 {
        let begin = Instant::now();
        context.run_once(|commands| {
            let copy = vk::BufferCopy { src_offset: 0, dst_offset: 0, size: BYTES };
            // SAFETY: the buffer is being recorded, and the range is that of both buffers.
            unsafe { record::copy_to_host(&context.device, commands, source.raw, target.raw, copy) };
        })?;
        if let Some(bytes) = target.bytes_mut() {
            own.copy_from_slice(&bytes[..BYTES as usize]);
        }
        best = best.max(BYTES as f64 / begin.elapsed().as_secs_f64());
    }
    Ok(best)
}
