/* Lets user-mode Linux before 6.9 run on CPUs whose register state is larger than the 2696 bytes it keeps (those with AMX).
 *
 * The host takes PTRACE_SETREGSET of NT_X86_XSTATE only with the whole state; such a kernel gives the part it knows and fails
 * ("ptrace set fp regs failed, errno = 14"). Preloaded, this puts that part over the child's own state and gives it all.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define XSTATE 0x202
#define WHOLE 65536

long ptrace(enum __ptrace_request request, ...)
{
	static long (*real)(enum __ptrace_request, ...);
	static char state[WHOLE] __attribute__((aligned(64)));
	va_list rest;

	va_start(rest, request);
	long pid = va_arg(rest, long);
	void *address = va_arg(rest, void *);
	void *data = va_arg(rest, void *);
	va_end(rest);
	if (!real)
		real = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
	long result = real(request, (int)pid, address, data);
	if (request != PTRACE_SETREGSET || address != (void *)XSTATE || result == 0 || errno != EFAULT)
		return result;
	struct iovec *part = data, whole = {state, WHOLE};
	if (real(PTRACE_GETREGSET, (int)pid, address, &whole) != 0 || part->iov_len > whole.iov_len)
		return -1;
	memcpy(state, part->iov_base, part->iov_len);
	return real(PTRACE_SETREGSET, (int)pid, address, &whole);
}
