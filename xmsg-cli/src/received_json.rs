//! JSON that others sent, read into values within a bound of memory. Whoever answers in place of a proxy may
//! send documents of any shape, and the values of a document take up to a hundred times the memory of its
//! text.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Deserializer, Map, Value};

/// The memory that the values of one document may take, in bytes. It is enough for a hundred thousand entries
/// of a proxy's list.
const MEMORY_MAX: usize = 128 << 20;
/// What one element of an array takes: a `Value`, twice for the moment in which the array grows.
const ELEMENT: usize = 2 * size_of::<Value>();
/// What the first member of an object takes, which is a whole node of its tree, and what each other takes.
const FIRST_MEMBER: usize = 11 * (size_of::<Value>() + size_of::<String>()) + 32;
const MEMBER: usize = 2 * (size_of::<Value>() + size_of::<String>());
/// What the allocation of a text takes beyond its bytes.
const TEXT: usize = 32;

/// Reads a document. An error says that it is no JSON, or that its values would take more than 128 MiB.
pub(crate) fn value(text: &[u8]) -> serde_json::Result<Value> {
    let mut left = MEMORY_MAX;
    let mut deserializer = Deserializer::from_slice(text);
    let value = Bounded { left: &mut left }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Reads one value, and takes what it needs from the memory that is left.
struct Bounded<'a> {
    left: &'a mut usize,
}

impl Bounded<'_> {
    fn take<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        *self.left = self.left.checked_sub(bytes).ok_or_else(|| E::custom("it has too many values"))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<Value, E> {
        self.take::<E>(TEXT + text.len())?;
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(Bounded { left: self.left })? {
            self.take::<A::Error>(ELEMENT)?;
            array.push(element);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let member = if object.is_empty() { FIRST_MEMBER } else { MEMBER };
            self.take::<A::Error>(TEXT + key.len() + member)?;
            let value = members.next_value_seed(Bounded { left: self.left })?;
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_as_it_is() {
        let text = r#"{"a":[1,-2,2.5,true,null,"x\u00e9"],"b":{"c":{}},"a b":18446744073709551615}"#;
        assert_eq!(value(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        for bad in ["", "{", "[1]x", "nul", "\"\u{1}\""] {
            assert!(value(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(value(b"\"\xff\"").is_err());
    }

    /// Each of these takes gigabytes as a `Value`, though its text has a few megabytes.
    #[test]
    fn a_document_that_would_take_too_much_memory_is_refused() {
        for element in ["0,", "[0],", "{\"\":0},", "\"\","] {
            let text = format!("[{}0]", element.repeat(4 << 20));
            let error = value(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("too many values"), "{element}: {error}");
        }
        let members: Vec<_> = (0..2_000_000).map(|number| format!("\"{number}\":0,")).collect();
        let members = members.concat();
        assert!(value(format!("{{{members}\"x\":0}}").as_bytes()).is_err());
    }
}
