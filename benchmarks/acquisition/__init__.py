"""Our policies against published methods of active feature acquisition, on the same capsules."""
