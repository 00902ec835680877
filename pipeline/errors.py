"""The one exception for a mistake that the user can mend; every command turns it into exit code 2."""


class UserError(Exception):
    """What is wrong (the file or field and its value), what is allowed and what to do, in words.

    Anything else that is raised is a defect of the project and keeps its traceback.
    """
