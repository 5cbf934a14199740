//! A small GGUF writer that can lie, and a generator of bytes.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

/// Numbers of metadata value types.
pub mod ty {
    pub const U8: u32 = 0;
    pub const U16: u32 = 2;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const F64: u32 = 12;
}

/// A file in the making. Counts follow what is added unless set.
#[derive(Clone)]
pub struct Writer {
    pub magic: [u8; 4],
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    pub alignment: usize,
    /// How many were added, and their bytes.
    pub keys: (u64, Vec<u8>),
    pub tensors: (u64, Vec<u8>),
    pub data: Vec<u8>,
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// Type, length and elements of an array.
pub fn array(element: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

pub fn strings(list: &[&[u8]]) -> Vec<u8> {
    let elements: Vec<u8> = list.iter().flat_map(|text| string(text)).collect();
    array(ty::STRING, list.len() as u64, &elements)
}

impl Writer {
    pub fn new() -> Writer {
        Writer {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            alignment: 32,
            keys: (0, Vec::new()),
            tensors: (0, Vec::new()),
            data: Vec::new(),
        }
    }

    /// A key with any type number and any bytes.
    pub fn raw(mut self, key: &[u8], ty: u32, value: &[u8]) -> Writer {
        self.keys.0 += 1;
        self.keys.1.extend(string(key));
        self.keys.1.extend(ty.to_le_bytes());
        self.keys.1.extend(value);
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Writer {
        self.raw(key.as_bytes(), ty::U32, &value.to_le_bytes())
    }

    pub fn str(self, key: &str, value: &str) -> Writer {
        self.raw(key.as_bytes(), ty::STRING, &string(value.as_bytes()))
    }

    pub fn array(self, key: &str, value: &[u8]) -> Writer {
        self.raw(key.as_bytes(), ty::ARRAY, value)
    }

    /// A row of the tensor section with any offset, and no data.
    pub fn entry(mut self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Writer {
        self.tensors.0 += 1;
        self.tensors.1.extend(string(name.as_bytes()));
        self.tensors.1.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.tensors.1.extend(dim.to_le_bytes()));
        self.tensors.1.extend(ty.to_le_bytes());
        self.tensors.1.extend(offset.to_le_bytes());
        self
    }

    /// A tensor whose data follow those before it.
    pub fn tensor(mut self, name: &str, dims: &[u64], ty: u32, data: &[u8]) -> Writer {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.entry(name, dims, ty, offset)
    }

    /// Data for entries written without.
    pub fn data(mut self, len: usize) -> Writer {
        self.data.resize(len, 7);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.0).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.0).to_le_bytes());
        out.extend(&self.keys.1);
        out.extend(&self.tensors.1);
        if self.tensors.0 > 0 {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&self.data);
        }
        out
    }
}

/// A file with every kind of value and three tensors.
pub fn sample() -> Writer {
    let floats: Vec<u8> = [0.5f32, -1.0, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let ints: Vec<u8> = [1i32, 2, 3].iter().flat_map(|x| x.to_le_bytes()).collect();
    let inner = array(ty::U8, 2, &[1, 2]);
    Writer::new()
        .str("general.architecture", "gemma3")
        .u32("gemma3.block_count", 3)
        .raw(b"gemma3.context_length", ty::U64, &32768u64.to_le_bytes())
        .raw(b"eps", ty::F32, &1e-6f32.to_le_bytes())
        .raw(b"base", ty::F64, &1e6f64.to_le_bytes())
        .raw(b"flag", ty::BOOL, &[1])
        .raw(b"minus", ty::I32, &(-1i32).to_le_bytes())
        .array("tokens", &strings(&[b"<bos>", b"", "\u{e9}".as_bytes()]))
        .array("scores", &array(ty::F32, 3, &floats))
        .array("types", &array(ty::I32, 3, &ints))
        .array("flags", &array(ty::BOOL, 2, &[0, 1]))
        .array("nested", &array(ty::ARRAY, 1, &inner))
        .tensor("token_embd.weight", &[32, 3], 8, &[3; 3 * 34])
        .tensor("output_norm.weight", &[32], 0, &[0; 128])
        .tensor("blk.0.attn_q.weight", &[32, 2], 1, &[1; 128])
}

/// xorshift64*, Vigna 2016: the same bytes on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to `end`, exclusive.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// `seed` with one to eight changes of the kinds that break parsers.
pub fn mutate(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=rng.below(8) {
        let at = rng.below(bytes.len());
        match rng.below(6) {
            _ if bytes.is_empty() => bytes.push(rng.next() as u8),
            0 => bytes[at] = rng.next() as u8,
            1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.truncate(at),
            3 => {
                let count = rng.below(16).min(bytes.len() - at);
                let piece = bytes[at..at + count].to_vec();
                let to = rng.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            4 => {
                let count = rng.below(16).min(bytes.len() - at);
                bytes.drain(at..at + count);
            }
            _ => {
                let extremes = [0, 1, u64::from(u32::MAX), 1 << 60, u64::MAX, 1 << 63, 31, 256];
                let word = extremes[rng.below(extremes.len())].to_le_bytes();
                let count = word.len().min(bytes.len() - at);
                bytes[at..at + count].copy_from_slice(&word[..count]);
            }
        }
    }
    bytes
}
