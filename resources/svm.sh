#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# Tries this monitor on KVM with SVM, on a host that has no SVM: in a Debian guest of QEMU's, whose processor, SVM
# included, QEMU emulates. It is slow, and times mean nothing there; what holds and what does not means as much as on an
# AMD processor.
#
#	resources/svm.sh                         # vmm-lab doctor, then vmm-lab conformance
#	resources/svm.sh 'vmm --vcpus 2 --lock mutex'
#
# It takes Debian's apt, QEMU, cpio and xz, and the network: a stock kernel (6.9 or newer, for the bpf publisher) and a
# static busybox are downloaded once, to $XDG_CACHE_HOME/vmm-svm.
set -eu
cd "$(dirname "$0")/.."
commands=${1:-vmm-lab doctor; vmm-lab conformance}
suite=trixie
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vmm-svm
vmm=${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu/release/vmm-lab
[ -x "$vmm" ] || cargo build --release --locked

if [ ! -d "$cache/kernel/boot" ]; then
	mkdir -p "$cache/apt/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" \
		>"$cache/sources.list"
	apt() { # with lists of its own, and nothing installed
		tool=$1
		shift
		"$tool" -qq -o APT::Sandbox::User=root -o Dir::Etc::sourcelist="$cache/sources.list" -o Dir::Etc::sourceparts=- \
			-o Dir::State::lists="$cache/apt" "$@"
	}
	apt apt-get update
	image=$(apt apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2 }')
	(cd "$cache" && apt apt-get download "$image" busybox-static)
	dpkg-deb -x "$cache"/linux-image-*.deb "$cache/kernel"
	dpkg-deb -x "$cache"/busybox-static_*.deb "$cache/busybox"
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
cp "$(find "$cache/busybox" -path "*bin/busybox" -type f)" "$root/bin/busybox"
cp "$vmm" "$root/bin/vmm-lab"
for module in irqbypass kvm kvm-amd; do
	xz -dc "$(find "$cache/kernel" -name "$module.ko.xz")" >"$root/$module.ko"
done
cat >"$root/init" <<END
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in irqbypass kvm kvm-amd; do insmod /\$module.ko; done
$commands
reboot -f
END
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc) | gzip -1 >"$cache/initrd.gz"
qemu-system-x86_64 -accel tcg,thread=multi -cpu max -M q35 -smp 2 -m 2048 -nodefaults -display none -serial stdio \
	-no-reboot -kernel "$(find "$cache/kernel/boot" -name 'vmlinuz-*')" -initrd "$cache/initrd.gz" \
	-append "console=ttyS0 panic=-1 quiet"
