# A 32-bit program that makes 64-bit calls: its stack lies low. It has the stack's lowest page locked, and grows the stack by 4 MiB.
	.code32
	.globl	_start
_start:
	ljmp	$0x33, $wide
	.code64
wide:
	mov	%esp, %ebx
	and	$-4096, %ebx
	sub	$0x40000, %ebx		# below what the kernel laid out, so that this page becomes the lowest one
	movb	$1, (%rbx)
	mov	%ebx, %edi
	mov	$4096, %esi
	mov	$149, %eax		# mlock
	syscall
	mov	$1024, %ecx
grow:
	sub	$4096, %ebx
	movb	$1, (%rbx)
	loop	grow
	mov	$1, %eax		# write
	mov	$1, %edi
	mov	$said, %esi
	mov	$4, %edx
	syscall
stay:
	mov	$34, %eax		# pause
	syscall
	jmp	stay
said:	.ascii	"0 0\n"
