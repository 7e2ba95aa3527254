//! Machine code of the check and of its callers, disassembled from the built payload.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol};
use protocol::payload::params::Check;
use serde::Serialize;

use crate::error::Error;
use crate::payload;

/// The code of a function, as compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionCode {
    /// Length in bytes.
    pub bytes: u64,
    /// Registers that it saves: `push` instructions.
    pub pushes: usize,
    /// Instructions that access a slot of the stack frame.
    pub spills: usize,
    /// `call` instructions.
    pub calls: usize,
    /// Whether it begins at a cache line.
    pub is_aligned: bool,
}

/// The code of a form of the check and of its callers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FormCode {
    /// The check itself; `None` if it is inlined.
    pub check: Option<FunctionCode>,
    /// A loop that waits for a lock's owner, compiled alone.
    pub spin: FunctionCode,
    /// The same loop, compiled into a larger function.
    pub folded: FunctionCode,
}

/// Disassembles `form` and its callers from the embedded payload.
///
/// # Errors
/// [`Error::Failed`] if the payload is no ELF file or has no symbols.
pub fn of(form: Check) -> Result<FormCode, Error> {
    let elf = object::File::parse(payload::BYTES).map_err(|error| unreadable(&error))?;
    let function = |name: String| function(&elf, &name);
    let check = match form {
        Check::Inline => None,
        // The pointer leads to the form that landed in Linux.
        Check::Pointer => Some(function("check_save0".to_owned())?),
        form => Some(function(format!("check_{form}"))?),
    };
    Ok(FormCode {
        check,
        spin: function(format!("owner_spin_{form}"))?,
        folded: function(format!("owner_spin_folded_{form}"))?,
    })
}

fn unreadable(error: &object::Error) -> Error {
    Error::failed("the code of the embedded payload", error)
}

fn function(elf: &object::File<'_>, name: &str) -> Result<FunctionCode, Error> {
    let missing = || Error::failed(name, "the embedded payload has no such function (was it stripped?)");
    let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(name)).ok_or_else(missing)?;
    let section = symbol.section_index().ok_or_else(missing)?;
    let section = elf.section_by_index(section).map_err(|error| unreadable(&error))?;
    let code = section.data_range(symbol.address(), symbol.size()).map_err(|error| unreadable(&error))?;
    let code = code.ok_or_else(missing)?;
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

/// Whether `instruction` accesses a slot of the stack frame.
fn touches_the_stack(instruction: &Instruction) -> bool {
    let has_memory = (0..instruction.op_count()).any(|place| instruction.op_kind(place) == OpKind::Memory);
    has_memory && instruction.mnemonic() != Mnemonic::Lea && instruction.memory_base() == Register::RSP
}
