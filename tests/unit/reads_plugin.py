"""A plugin of mypy: notes which members of `contract/sglang/`'s Protocols the checked code reads, writes or calls."""

from mypy.nodes import AssignmentStmt, CallExpr, FuncDef, MemberExpr, NameExpr
from mypy.plugin import Plugin
from mypy.types import Instance, get_proper_type

PACKAGE = "sglang_rpc."
DECLARED_IN = f"{PACKAGE}contract.sglang."
#: "module.Protocol.member", module without DECLARED_IN.
READ: set[str] = set()


class Reads(Plugin):
    """Changes no type."""

    def get_attribute_hook(self, fullname):
        return _note_attribute if fullname.startswith(PACKAGE) else None

    def get_method_hook(self, fullname):
        return _note_method if fullname.startswith(PACKAGE) else None

    def get_base_class_hook(self, fullname):
        return _note_overrides if fullname.startswith(DECLARED_IN) else None


def _note_attribute(context):
    _note(context.context, context.type)
    return context.default_attr_type


def _note_method(context):
    _note(context.context.callee if isinstance(context.context, CallExpr) else None, context.type)
    return context.default_return_type


def _note(node, type_of_object):
    # mypy asks too when it compares two Protocols, or a class with its bases: then the code reads nothing.
    owner = get_proper_type(type_of_object)
    if isinstance(node, MemberExpr) and isinstance(owner, Instance):
        declaring = owner.type.get_containing_type_info(node.name)
        if declaring is not None and declaring.fullname.startswith(DECLARED_IN):
            READ.add(f"{declaring.fullname}.{node.name}".removeprefix(DECLARED_IN))


def _note_overrides(context):
    """What a subclass overrides, it also calls, or SGLang does."""
    base = context.api.lookup_qualified(context.reason.name, context.reason).node.fullname
    for statement in context.cls.defs.body:
        names = [statement.name] if isinstance(statement, FuncDef) else []
        if isinstance(statement, AssignmentStmt):
            names = [left.name for left in statement.lvalues if isinstance(left, NameExpr)]
        READ.update(f"{base}.{name}".removeprefix(DECLARED_IN) for name in names)


def plugin(version):
    """What mypy calls."""
    return Reads
