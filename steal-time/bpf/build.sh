#!/bin/sh
# SPDX-License-Identifier: (GPL-2.0 OR MIT)
#
# Rebuilds the BPF objects. With a directory as $1 it writes them there. Otherwise it writes them
# here, and records the hashes of sources and objects in steal_time.sha256 (see `sha256sum -c`).
#
# A build of the Rust crates does not run this: the objects are committed, and a test compares them
# with their sources. It needs clang-14, llvm-strip-14 and libbpf's headers (Debian: clang-14
# llvm-14 libbpf-dev).
#
# The objects are reproducible: the prefix map keeps the directory out of them. BTF stays, with line
# numbers, for CO-RE relocation and for the verifier's messages. DWARF is stripped.
set -eu
cd "$(dirname "$0")"
clang=${CLANG:-clang-14}
strip=${LLVM_STRIP:-llvm-strip-14}

for program in steal_time steal_time_classic; do
	object=${1:-.}/$program.bpf.o
	"$clang" -O2 -g -target bpf -mcpu=v3 -Wall -Werror -fdebug-prefix-map="$PWD=." \
		-isystem "/usr/include/$(uname -m)-linux-gnu" -c "$program.bpf.c" -o "$object"
	"$strip" -g "$object"
done

if [ $# -eq 0 ]; then
	{
		echo "# $("$clang" --version | head -n 1)"
		sha256sum record.bpf.h init.bpf.h steal_time.bpf.c steal_time_classic.bpf.c ./*.bpf.o | sed 's|\./||'
	} >steal_time.sha256
fi
