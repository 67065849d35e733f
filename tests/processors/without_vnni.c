/* Hide AVX-512, VNNI and AMX from a program, so that it runs its AVX2 kernels at full speed.

   Linux can make the CPUID instruction fault (arch_prctl ARCH_SET_CPUID); the handler answers in its place.
   Loaded with LD_PRELOAD by the script `without-vnni`, which compiles it. Programs cannot set a handler of
   their own for SIGSEGV. Needs a processor and a hypervisor that let CPUID fault ("cpuid_fault"). */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

typedef int (*sigaction_fn)(int, const struct sigaction *, struct sigaction *);

static int allow_cpuid(unsigned long allowed) { return (int)syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void answer(int signal, siginfo_t *info, void *context) {
  (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
  if (instruction[0] != 0x0F || instruction[1] != 0xA2) { /* a real fault: let it happen again, and end */
    struct sigaction by_default;
    memset(&by_default, 0, sizeof by_default);
    by_default.sa_handler = SIG_DFL;
    ((sigaction_fn)dlsym(RTLD_NEXT, "sigaction"))(signal, &by_default, NULL);
    return;
  }
  unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], a, b, c, d;
  allow_cpuid(1);
  __cpuid_count(leaf, part, a, b, c, d);
  allow_cpuid(0);
  if (leaf == 7 && part == 0) {
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 */
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                                 /* AVX-512, VNNI */
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));              /* FP16, AMX */
  }
  if (leaf == 7 && part == 1) {
    a &= ~(BIT(4) | BIT(5) | BIT(21)); /* AVX-VNNI, BF16, AMX-FP16 */
    d &= ~(BIT(4) | BIT(8) | BIT(10) | BIT(19)); /* AVX-VNNI-INT8, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */
  }
  if (leaf == 0x24) a = b = c = d = 0; /* AVX10 */
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

int sigaction(int signal, const struct sigaction *wanted, struct sigaction *before) {
  if (signal == SIGSEGV) {
    if (before) memset(before, 0, sizeof *before);
    return 0;
  }
  return ((sigaction_fn)dlsym(RTLD_NEXT, "sigaction"))(signal, wanted, before);
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction handler;
  memset(&handler, 0, sizeof handler);
  handler.sa_sigaction = answer;
  /* Not on an alternate stack: libraries set some that are gone when CPUID faults, and the program would end. */
  handler.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
  ((sigaction_fn)dlsym(RTLD_NEXT, "sigaction"))(SIGSEGV, &handler, NULL);
  if (allow_cpuid(0)) {
    static const char text[] = "without-vnni: CPUID cannot be made to fault on this machine\n";
    if (write(2, text, sizeof text - 1)) {}
    _exit(2);
  }
}
