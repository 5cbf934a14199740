//! The alphabet of byte-level BPE: each byte stands in the vocabulary as one printable character.
//!
//! Source: `bytes_to_unicode` of GPT-2, <https://github.com/openai/gpt-2/blob/master/src/encoder.py>. Bytes that are
//! printable in Latin-1 stand for themselves; the others follow from U+0100 in order of value.

/// Number of bytes that do not stand for themselves.
const SHIFTED: usize = 68;

const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Character of each byte, as a code point.
pub(crate) const CHAR_OF_BYTE: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut shifted = 0;
    let mut byte = 0;
    while byte < 256 {
        table[byte] = if stands_for_itself(byte as u8) {
            byte as u16
        } else {
            shifted += 1;
            0x100 + shifted - 1
        };
        byte += 1;
    }
    table
};

/// Byte of each code point below 0x100 + 68; -1 where there is none.
const BYTE_OF_CHAR: [i16; 0x100 + SHIFTED] = {
    let mut table = [-1i16; 0x100 + SHIFTED];
    let mut byte = 0;
    while byte < 256 {
        table[CHAR_OF_BYTE[byte] as usize] = byte as i16;
        byte += 1;
    }
    table
};

/// The byte that `c` stands for.
pub(crate) fn byte_of_char(c: char) -> Option<u8> {
    let byte = *BYTE_OF_CHAR.get(c as usize)?;
    u8::try_from(byte).ok()
}

/// The character that stands for `byte`.
pub(crate) fn char_of_byte(byte: u8) -> char {
    // Every entry is below 0x144, far from the surrogates.
    char::from_u32(u32::from(CHAR_OF_BYTE[usize::from(byte)])).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_and_back() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(char_of_byte(b'\n'), 'Ċ');
        assert_eq!(char_of_byte(0xAD), 'Ń');
        assert_eq!(byte_of_char(' '), None);
        assert_eq!(byte_of_char('\u{144}'), None);
    }
}
