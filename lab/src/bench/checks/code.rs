//! The check's code, and its callers': read from the payload as it was built, by a disassembler.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol};
use protocol::payload::params::Check;
use serde::Serialize;

use crate::payload;

/// The embedded payload's code cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// It is no ELF file.
    #[error("Cannot read the embedded payload")]
    NoElf(#[from] object::Error),
    /// A symbol is missing.
    #[error("The embedded payload has no function `{0}` (was it stripped?)")]
    Missing(String),
}

/// What a compiler made of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionCode {
    /// Its length.
    pub bytes: u64,
    /// Registers that it saves.
    pub pushes: usize,
    /// Times that it puts a variable on the stack, or takes it from there.
    pub spills: usize,
    /// Calls in it.
    pub calls: usize,
    /// Whether it begins on a cache line.
    pub is_aligned: bool,
}

/// A form of the check, and what it does to its callers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FormCode {
    /// Its own code; `None` where there is none to be called.
    pub check: Option<FunctionCode>,
    /// An owner's spinner around it, compiled alone.
    pub spin: FunctionCode,
    /// The same, compiled into a larger function.
    pub folded: FunctionCode,
}

/// Reads what the embedded payload has of `form`.
///
/// # Errors
/// [`CodeError`].
pub fn of(form: Check) -> Result<FormCode, CodeError> {
    let elf = object::File::parse(payload::BYTES)?;
    let function = |name: String| function(&elf, &name);
    let check = match form {
        Check::Inline => None,
        // Called through a pointer; what is called has landed.
        Check::Pointer => Some(function("check_save0".to_owned())?),
        form => Some(function(format!("check_{form}"))?),
    };
    Ok(FormCode {
        check,
        spin: function(format!("owner_spin_{form}"))?,
        folded: function(format!("owner_spin_folded_{form}"))?,
    })
}

fn function(elf: &object::File<'_>, name: &str) -> Result<FunctionCode, CodeError> {
    let missing = || CodeError::Missing(name.to_owned());
    let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(name)).ok_or_else(missing)?;
    let section = symbol.section_index().ok_or_else(missing)?;
    let section = elf.section_by_index(section)?;
    let code = section.data_range(symbol.address(), symbol.size())?.ok_or_else(missing)?;
    let mut found = FunctionCode {
        bytes: symbol.size(),
        is_aligned: symbol.address().is_multiple_of(64),
        ..FunctionCode::default()
    };
    for instruction in &mut Decoder::with_ip(64, code, symbol.address(), DecoderOptions::NONE) {
        match instruction.mnemonic() {
            Mnemonic::Push => found.pushes += 1,
            Mnemonic::Pop => {}
            Mnemonic::Call => found.calls += 1,
            _ if touches_the_stack(&instruction) => found.spills += 1,
            _ => {}
        }
    }
    Ok(found)
}

/// Whether `instruction` reads or writes a slot of the stack frame.
fn touches_the_stack(instruction: &Instruction) -> bool {
    let has_memory = (0..instruction.op_count()).any(|place| instruction.op_kind(place) == OpKind::Memory);
    has_memory && instruction.mnemonic() != Mnemonic::Lea && instruction.memory_base() == Register::RSP
}
