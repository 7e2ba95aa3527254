#!/bin/sh
# SPDX-License-Identifier: (GPL-2.0 OR MIT)
#
# Rebuilds the BPF objects, into directory $1 if there is one; otherwise here, with the record of what they were built
# from and with (steal_time.sha256, readable by `sha256sum -c`).
#
# Building the monitor takes none of this: the objects are committed, and a test compares them with their sources. It
# takes clang-14, llvm-strip-14 and the headers of libbpf (Debian: clang-14 llvm-14 libbpf-dev).
#
# The same compiler gives the same bytes anywhere: the prefix map keeps the directory out of the object. BTF stays,
# with its line numbers, for relocation and for the verifier's messages; DWARF, which nobody reads, goes.
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
