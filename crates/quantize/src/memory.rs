//! Packing into memory: the GGUF file that [`crate::write()`] would make, as bytes.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use files::gguf::Head;
use tensor::{AlignedBuf, Bytes};

use crate::{
    Importance, Plan, QuantizeError, Report, Source, WriteOptions,
    pack::{Packing, Sink},
    write::{heads, metadata},
};

/// Packs `source` as [`crate::write()`] does, into memory. Of the options the threads and their memory count. Memory
/// is that of the result and of the threads.
///
/// # Errors
/// Where a weight is NaN, infinite or out of a type's range.
pub fn pack(
    source: &Source,
    plan: &Plan,
    importance: Option<&Importance>,
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Bytes, Report), QuantizeError> {
    let start = Instant::now();
    let head = Head::new(&metadata(source, plan, importance), &heads(source, plan)).map_err(QuantizeError::Head)?;
    let mut file = AlignedBuf::zeroed(usize::try_from(head.file_bytes).unwrap_or(usize::MAX));
    file[..head.bytes.len()].copy_from_slice(&head.bytes);
    let sink = Slices::new(&head, &mut file);
    let threads = options.threads_for(source);
    let powers = Packing { source, plan, importance, threads }.run(&sink, progress)?;
    let report = Report::new(source, plan, &powers, head.file_bytes, start.elapsed());
    Ok((file.into(), Report { threads, ..report }))
}

/// The bytes of each tensor.
struct Slices<'a>(Vec<Mutex<&'a mut [u8]>>);

impl<'a> Slices<'a> {
    /// Tensors lie one after the other, with padding between them.
    fn new(head: &Head, file: &'a mut [u8]) -> Slices<'a> {
        let (mut rest, mut at) = (file, 0);
        let slice = |(offset, bytes): &(u64, u64)| {
            let (_, after) = std::mem::take(&mut rest).split_at_mut((offset - at) as usize);
            let (own, after) = after.split_at_mut(*bytes as usize);
            (rest, at) = (after, offset + bytes);
            Mutex::new(own)
        };
        Slices(head.tensors.iter().map(slice).collect())
    }
}

impl Sink for Slices<'_> {
    fn has(&self, _: usize) -> bool {
        false
    }

    fn put(&self, tensor: usize, at: u64, bytes: &[u8]) -> Result<(), QuantizeError> {
        let mut place = self.0[tensor].lock().unwrap_or_else(PoisonError::into_inner);
        place[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn finished(&self, _: usize) -> Result<(), QuantizeError> {
        Ok(())
    }
}
