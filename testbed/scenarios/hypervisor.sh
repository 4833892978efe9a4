# about: grants, event channels and the store, asked of Xen by a process in Dom0; nothing is left behind
# takes: 180 s
# ci: yes
# tests: hypervisor/on_xen
say "$(hypervisor info | head -n 2 | tr '\n' ' ')"
expect_has "hypervisor info" "$(hypervisor info)" "a control domain"
expect "missing devices" "$(hypervisor info --json | grep -c '"path"' || true)" 0
expect_has "hypervisor list" "$(hypervisor list)" "Domain-0"

# What Xen itself counts: grants in use, and event channels that are open.
counted() {
    xl dmesg -c >/dev/null
    xl debug-keys ge
    sleep 1
    xl dmesg -c >/run/counted
    echo "$(grep -c '\[0x' /run/counted || true) grants, $(grep -c ']: s=[1-6]' /run/counted || true) channels"
}
before=$(counted)
say "before: $before"
DOMKIT_SCRATCH=/work/scratch /bed/tests/on_xen --ignored --test-threads=1 --nocapture
after=$(counted)
say "after: $after"
expect "what is left behind" "$after" "$before"
